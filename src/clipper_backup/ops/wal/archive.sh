#!/bin/sh
# archive_command = 'sh /clipper-backup/archive.sh /clipper-backup/handshake %p'
#
# Asks `clipper-backup wal archive`, which runs beside this server, about one file, and waits for the answer to this request.
# 0: the file is durable in the archive, PostgreSQL may forget it. 1: it is not, PostgreSQL asks again.
# ARCHIVE_WAIT_SECONDS (60): how long it waits. Runs in any POSIX shell with coreutils or busybox.
set -u
umask 077
handshake=$1 file=${2##*/} patience=${ARCHIVE_WAIT_SECONDS:-60}

fail() {
    echo "archive: $file: $1" >&2
    exit 1
}

[ -e "$handshake/alive" ] || fail "no \`clipper-backup wal archive\` answers in $handshake"
# A process id comes back, and with it an old answer; this never does.
read -r id </proc/sys/kernel/random/uuid || fail "no unique name for a request"
request=$handshake/requests/$id answer=$handshake/answers/$id
printf '%s\nend\n' "$file" >"$request" || fail "cannot ask"

looks=0 since=
until [ -e "$answer" ]; do
    if [ "$looks" -lt 125 ]; then
        looks=$((looks + 1))
        sleep 0.004 2>/dev/null || sleep 1
        continue
    fi
    sleep 0.1 2>/dev/null || sleep 1
    now=$(date +%s)
    since=${since:-$now}
    beat=0
    read -r beat 2>/dev/null <"$handshake/alive"
    if [ $((now - beat)) -gt 30 ]; then
        rm -f "$request"
        fail "\`clipper-backup wal archive\` gave no sign of life for more than 30 seconds"
    fi
    if [ $((now - since)) -ge "$patience" ]; then
        rm -f "$request"
        fail "not archived within $patience seconds, PostgreSQL asks again"
    fi
done

code=1
{
    read -r word name
    if [ "$word $name" = "ok $file" ]; then
        code=0
    else
        while read -r line; do
            echo "archive: $file: $line" >&2
        done
    fi
} <"$answer" # which `wal archive` removes
exit "$code"
