#!/bin/sh
# Fetch a file of the archive without clipper-backup: as restore_command of a server whose data read_base_backup.py put together.
#
#     restore_command = 'sh /PATH/fetch_wal.sh /PATH/BUCKET/wal/SYSTEM %f %p /PATH/IDENTITY'
#
# 1 says that the file is not there, 255 ends PostgreSQL: a file that cannot be read is not the end of the WAL.
wal=$1 name=$2 target=$3 identity=${4:-}
case $name in
*.history) stored=$wal/histories/$name.zst ;;
*) stored=$wal/$(printf %.8s "$name")/$(printf %.16s "$name")/$name.zst ;;
esac
if [ -e "$stored" ]; then
    zstd -dqfo "$target" "$stored" || exit 255
elif [ -e "$stored.age" ]; then
    age --decrypt --identity "$identity" "$stored.age" | zstd -dqfo "$target" || exit 255
else
    exit 1
fi
