#!/bin/sh
# obey.sh FOLDER [SECONDS]: run programs of this image as files in FOLDER, shared with our other container, say.
# docs/design/kubernetes.md, "The driven server". Written for dash and busybox; needs mv, sleep, env, sed and /proc.
#
#   run     an id, a log, then the words of `env`: NAME=value ..., program, arguments; one a line
#   pid     that id, and the process id
#   stop    that id, and INT, QUIT or KILL
#   exited  that id, and the exit status
#   alive   of this loop, and driver of the other side: something else every SECONDS / 12
#   end     stop what runs, and leave with 0
#
# Every file comes to be whole, by a rename. A side that has changed nothing for SECONDS (60) is gone.
set -u
folder=$1 patience=${2:-60}
beat_seconds=$((patience / 12)) coming=$((patience * 10))
id='' child='' ending=''

# The postmaster would obey PGPORT and PGDATA, which the image or the Pod sets.
for name in $(env | sed -n 's/^\(PG[A-Za-z0-9_]*\)=.*/\1/p'); do unset "$name"; done
cd / || exit 1

fail() {
    echo "obey.sh: $1" >&2
    exit 1
}

put() {
    { printf '%s\n' "$2" >"$folder/$1.new"; } 2>/dev/null && mv "$folder/$1.new" "$folder/$1" ||
        fail "cannot write to $folder as user $(id -u): both containers need one user id"
}

# Seconds that no clock steps over: the machine's wall clock may be set.
tell_time() {
    read -r now _ </proc/uptime
    now=${now%.*}
}

nap() { sleep 0.1 2>/dev/null || sleep 1; }

beat() {
    tell_time
    [ "$((now - beaten))" -ge "$beat_seconds" ] || return 0
    put alive "$now"
    beaten=$now
}

# state, parent and session of process $1; empty when there is none.
look() {
    state='' parent='' session=''
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 0
    # The name in parentheses may hold anything.
    set -- ${line##*') '}
    state=$1 parent=$2 session=$4
}

# The parent is asked too: the shell may have reaped it in passing, and its number may be another's by now.
runs() {
    [ -n "$child" ] || return 1
    look "$child"
    case $state in Z | X | '') return 1 ;; esac
    [ "$parent" = "$$" ]
}

take() {
    mv "$folder/run" "$folder/taken" || return 0
    {
        IFS= read -r id
        IFS= read -r log
        set --
        while IFS= read -r word; do set -- "$@" "$word"; done
    } <"$folder/taken"
    # Not `:`, a special built-in: the shell itself would end with 2 where its file cannot be opened (POSIX).
    if ! true 2>/dev/null >>"$log"; then
        echo "obey.sh: cannot write to $log as user $(id -u): both containers need one user id, and one path to it" >&2
        log=/dev/null
    fi
    env "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    put pid "$id $child"
}

# The exit status of what has ended.
report() {
    wait "$child"
    put exited "$id $?"
    id='' child=''
}

# What ran when this container was last killed ended with it, and nobody else would say so.
report_earlier() {
    { read -r earlier _ <"$folder/pid"; } 2>/dev/null || return 0
    { read -r ended _ <"$folder/exited"; } 2>/dev/null || ended=''
    [ "$ended" = "$earlier" ] || put exited "$earlier 137"
}

# All at once, as a power loss would. A postmaster is stopped first: one that forks while it is looked at would leave a
# child that nobody knows of. Each of its children has a session, in which the commands that it runs stay. It is the last
# to go, so that nothing is left once its end is seen.
kill_all() {
    runs || return 0
    kill -STOP "$child"
    while look "$child" && case $state in T | t | Z | X | '') false ;; esac; do nap; done
    family=" $child "
    while :; do
        left=''
        for stat in /proc/[0-9]*/stat; do
            pid=${stat#/proc/}
            pid=${pid%/stat}
            [ "$pid" != "$child" ] && [ "$pid" != "$$" ] || continue
            look "$pid"
            case $state in Z | X | '') continue ;; esac
            case $family in
            *" $pid "*) ;;
            *" $parent "* | *" $session "*) family="$family$pid " ;;
            *) continue ;;
            esac
            left="$left $pid"
        done
        [ -n "$left" ] || break
        for pid in $left; do kill -KILL "$pid" 2>/dev/null; done
    done
    kill -KILL "$child"
}

obey_stop() {
    mv "$folder/stop" "$folder/stopping" || return 0
    read -r stop_id how <"$folder/stopping"
    { [ "$stop_id" = "$id" ] && runs; } || return 0
    if [ "$how" = KILL ]; then kill_all; else kill -"$how" "$child"; fi
}

# Leave with $1; what runs is stopped in order, after SECONDS at once.
leave() {
    if runs; then
        kill -INT "$child"
        tell_time
        begun=$now
        while runs && [ "$((now - begun))" -lt "$patience" ]; do nap && beat; done
        if runs; then
            kill -QUIT "$child"
            tell_time
            begun=$now
            while runs && [ "$((now - begun))" -lt "$patience" ]; do nap && beat; done
            kill_all
        fi
    fi
    [ -z "$id" ] || report
    exit "$1"
}

trap 'ending=yes' TERM INT
tell_time
beaten=$((now - patience)) seen='' seen_at=$now allowed=$coming
if [ -e "$folder/driver" ]; then read -r seen <"$folder/driver"; fi
report_earlier
while :; do
    beat
    if [ -n "$ending" ] || [ -e "$folder/end" ]; then leave 0; fi
    if [ -e "$folder/run" ] && [ -z "$id" ]; then take; fi
    if [ -e "$folder/stop" ]; then obey_stop; fi
    if [ -n "$id" ] && ! runs; then report; fi
    if [ -e "$folder/driver" ]; then
        read -r told <"$folder/driver"
        if [ "$told" != "$seen" ]; then seen=$told seen_at=$now allowed=$patience; fi
    fi
    if [ "$((now - seen_at))" -gt "$allowed" ]; then
        echo "obey.sh: the container that says what to do has not been seen for $((now - seen_at)) s: ending" >&2
        leave 1
    fi
    nap
done
