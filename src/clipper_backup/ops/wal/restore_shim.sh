#!/bin/sh
# What `clipper-backup wal fetch` is for a PostgreSQL whose image has no Python; `clipper-backup wal serve` answers beside it.
#
#     sh /handshake/restore_shim.sh /handshake "%f" "%p"
#
# Ends with the codes of `wal fetch`: 0, 44 for "missing behind the end", and more than 200 for all else. So it does when nobody
# has given a sign of life for 30 seconds.
folder=$1 file=$2 target=$3
id=$(date +%s)-$$
code=201 why=

end() {
    rm -f "$folder/$id.draft" "$folder/$id.request" "$folder/$id.answer"
    [ -z "$why" ] || echo "restore_shim.sh: $file was not fetched: $why" >&2
    case $code in '' | *[!0-9]*) code=201 ;; esac
    exit "$code"
}
trap end EXIT
trap 'exit 201' HUP INT TERM

if ! { printf '%s\n%s\n' "$file" "$target" >"$folder/$id.draft" && mv "$folder/$id.draft" "$folder/$id.request"; }; then
    why="$folder cannot be written"
    exit
fi

looks=0 beat= seen=$(date +%s)
until [ -e "$folder/$id.answer" ]; do
    looks=$((looks + 1))
    if [ "$looks" -lt 100 ]; then sleep 0.01; else sleep 0.2; fi || sleep 1
    [ $((looks % 10)) -eq 0 ] || continue
    now=
    [ ! -r "$folder/alive" ] || read -r now <"$folder/alive"
    if [ -n "$now" ] && [ "$now" != "$beat" ]; then
        beat=$now seen=$(date +%s)
    elif [ $(($(date +%s) - seen)) -ge 30 ]; then
        why='nobody answers: does `clipper-backup wal serve` run?'
        exit
    fi
done
{ read -r code && cat >&2; } <"$folder/$id.answer"
