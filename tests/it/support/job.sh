# The command of the tests; see service.rs. Evidence files are renamed into place, so that what is there is whole.
evidence=$1 job=$2 attempt=$3 todo=$4
note() { echo "$2" >"$evidence/.$job.$attempt.$1.$$" && mv "$evidence/.$job.$attempt.$1.$$" "$evidence/$job.$attempt.$1"; }
# Without a process for each look: hundreds of these may wait at a time. Nobody ever writes to that pipe. In such a loop bash
# 5.2 ends a command substitution of a trap with the `read`, and drops the rest of the trap; and now and then it leaves the
# trap lying for as long as it is in there. So whoever has one waits by a process.
until_there() {
  local never
  if [ -n "$trapped" ]; then
    while [ ! -e "$1" ]; do sleep 0.05; done
    return
  fi
  exec {never}<> <(:)
  while [ ! -e "$1" ]; do read -rt 0.05 -u "$never"; done
  exec {never}>&-
}
# Every start and every end has a line of its own here, so that a second start of an attempt would be seen.
record() { echo "$* $job $attempt $CALLSHEET_RUN_TOKEN" >>"$evidence/log"; }
# A slot is held until the last process that inherited it is gone; one job too many, or one left alive, finds none free.
if [ -n "$SLOTS" ]; then
  for ((slot = 0; slot < SLOTS; slot++)); do
    exec {held}>"$evidence/$CALLSHEET_JOB_TYPE.slot$slot"
    flock -n "$held" && break
    exec {held}>&-
  done
  [ "$slot" -lt "$SLOTS" ] || record crowded
fi
# The same of the device that this run was given: nobody else may have it.
if [ -n "$DEVICE" ]; then
  exec {device}>"$evidence/device$DEVICE"
  flock -n "$device" || record crowded
fi
# And of what no other run of any worker may hold.
if [ -n "$ALONE" ]; then
  exec {alone}>"$ALONE"
  flock -n "$alone" || record crowded
fi
code=0
IFS=+ read -ra words <<<"$todo"
# Before anybody hears of the start: who does may send the signal at once.
for word in "${words[@]}"; do
  case $word in
    ignore-term) trap '' TERM ;;
    environment) env >"$evidence/$job.$attempt.environment" ;;
    note-term) trapped=yes; trap 'note term "$EPOCHREALTIME"; note end "$EPOCHREALTIME"; record end 0; exit 0' TERM ;;
  esac
done
record start
note start "$$ $EPOCHREALTIME"
for word in "${words[@]}"; do
  value=${word#*:}
  case $word in
    run:*) sleep "$value" ;;
    wait) until_there "$evidence/go" ;;
    wait:*) until_there "$evidence/go.$value" ;;
    flood:*) head -c "$value" /dev/zero | tr '\0' x ;;
    say:*) echo "$value" ;;
    complain:*) echo "$value" >&2 ;;
    daemon)
      # A double fork into a session of its own that ignores SIGTERM and has closed all it inherited.
      (setsid bash -c 'trap "" TERM; echo $$ >"$0.daemon"; while :; do sleep 0.1; done' "$evidence/$job.$attempt" </dev/null >/dev/null 2>&1 &)
      while [ ! -s "$evidence/$job.$attempt.daemon" ]; do sleep 0.01; done
      ;;
    count:*) seq 1 "$value" ;;
    megabytes:*) head -c "${value}M" /dev/zero; echo ;;
    junk) printf '\033[2J\033]0;title\007red \377\303( \342\200\256 end\b\n' ;;
    alive:*)
      # By a child of its own, every half second, so many times; the last one counts from then on.
      for ((i = 0; i < value; i++)); do (exec "$BINARY" notify --watchdog); sleep 0.5; done
      ;;
    # The same until the test makes `<evidence>/go.NAME`.
    prove:*) while [ ! -e "$evidence/go.$value" ]; do (exec "$BINARY" notify --watchdog); sleep 0.2; done ;;
    # Lines, half a second before each, or until the test makes `<evidence>/go.NAME`.
    out:*) for ((i = 0; i < value; i++)); do sleep 0.5; echo "$i"; done ;;
    err:*) for ((i = 0; i < value; i++)); do sleep 0.5; echo "$i" >&2; done ;;
    chatter:*) while [ ! -e "$evidence/go.$value" ]; do echo chatter; sleep 0.1; done ;;
    stuck) python3 -c 'import os, socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"WATCHDOG=trigger", os.environ["NOTIFY_SOCKET"])' ;;
    progress:*) "$BINARY" notify --progress "$value" --status "at $value" ;;
    kill:*) note end "$EPOCHREALTIME"; kill -s "$value" $$ ;;
    exit:*) code=$value ;;
  esac
done
note end "$EPOCHREALTIME"
record end "$code"
exit "$code"
