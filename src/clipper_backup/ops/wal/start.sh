#!/bin/sh
# The command of PostgreSQL's container: starts the image's own entry point, with archiving. Flags on the command line win over
# postgresql.conf, over ALTER SYSTEM, and over the `archive_mode = off` that a restore leaves in postgresql.auto.conf.
# Your own args reach it, and stay. Runs in any POSIX shell with coreutils or busybox.
set -u
: "${PGDATA:?this image does not say where its data folder is: set it in the env of this container}"
case ${1-} in '' | -*) set -- postgres "$@" ;; esac

# A new volume with ext4's lost+found is no empty folder to initdb. What is there once stays where it is.
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    case $(ls -A "$PGDATA" 2>/dev/null) in
    lost+found | 'lost+found
pgdata') export PGDATA="$PGDATA/pgdata" ;;
    *) [ ! -e "$PGDATA/pgdata/PG_VERSION" ] || export PGDATA="$PGDATA/pgdata" ;;
    esac
fi
# The archiver knows neither this container's env nor the image's.
printf '%s\n' "$PGDATA" >/clipper-backup/handshake/pgdata

# wal_level = logical stays, in a file, in args or by ALTER SYSTEM: with replica a server that has logical slots does not start.
program=$1
shift
level=$(postgres -C wal_level -D "$PGDATA" "$@" 2>/dev/null)
case "$level $*" in logical\ * | *wal?level=logical*) level=logical ;; *) level=replica ;; esac

set -- "$@" -c wal_level="$level" -c archive_mode=on -c archive_timeout=300 -c archive_library= \
    -c "archive_command=sh /clipper-backup/pitr/archive.sh /clipper-backup/handshake %p" \
    -c hba_file=/clipper-backup/pitr/pg_hba.conf
# For incremental base backups; 15 and 16 do not start with it.
if [ "${PG_MAJOR:-0}" -ge 17 ]; then set -- "$@" -c summarize_wal=on; fi
exec docker-entrypoint.sh "$program" "$@"
