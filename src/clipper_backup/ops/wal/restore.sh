#!/bin/sh
# restore_command = 'sh /clipper-backup/restore.sh /clipper-backup/handshake "%f" "%p"; case $? in 0) ;; 44) exit 1 ;; *) exit 255 ;; esac'
#
# Asks `clipper-backup wal serve`, which runs beside this server, for one file, and waits for the answer to this request.
# Ends like `clipper-backup wal fetch`: 0, the file is in place; 44, missing behind the end; more than 200, anything else. The
# `case` makes 1 of 44, and 255 of everything that is no answer, also of 2, with which a shell ends that does not find this
# file: PostgreSQL takes 1 to 125 for the end of the WAL and opens with what it has; more than that ends it.
# Runs in any POSIX shell with coreutils or busybox.
umask 077
handshake=$1 file=$2 target=$3 since=

fail() {
    echo "restore: $file: $1" >&2
    exit 201
}

silent() { # for more than 30 seconds, since the first look or since the last sign of life
    now=$(date +%s)
    since=${since:-$now} beat=$since
    read -r beat 2>/dev/null <"$handshake/alive"
    [ "$beat" -gt "$since" ] 2>/dev/null || beat=$since
    [ $((now - beat)) -gt 30 ]
}

# A process id comes back, and with it an old answer; this never does.
id=
read -r id </proc/sys/kernel/random/uuid
[ -n "$id" ] || fail "no unique name for a request"
request=$handshake/requests/$id answer=$handshake/answers/$id

until printf '%s\n%s\nend\n' "$file" "$target" 2>/dev/null >"$request"; do
    ! silent || fail "no \`clipper-backup wal serve\` answers in $handshake"
    sleep 1
done
looks=0
until [ -e "$answer" ]; do
    # A request goes when its answer is there; and an answer that nobody read goes a minute later.
    [ -e "$request" ] || [ -e "$answer" ] || fail "the request is gone, and no answer came"
    if [ "$looks" -lt 200 ]; then
        looks=$((looks + 1))
        sleep 0.004 2>/dev/null || sleep 1
    else
        sleep 0.1 2>/dev/null || sleep 1
        if silent; then
            rm -f "$request"
            fail "\`clipper-backup wal serve\` gave no sign of life for more than 30 seconds"
        fi
    fi
done

code=201 word= name=
{
    read -r word name
    if [ "$word $name" = "ok $file" ]; then
        code=0
    else
        read -r code
        while read -r line; do
            echo "restore: $file: $line" >&2
        done
    fi
} <"$answer" # which `wal serve` removes: a process more for each segment would keep replay waiting
case $code in 0 | 44 | 2[0-9][0-9]) exit "$code" ;; esac
fail "the answer cannot be read"
