# The command of the soak; its identifier says what it does: KIND/SECONDS/CODE.
kind=${1%%/*} rest=${1#*/}
seconds=${rest%%/*} code=${rest#*/}
code=${code%%/*}
case $kind in
  # Many of these: a clip, a thumbnail.
  short)
    echo "rendering $1"
    sleep "$seconds"
    [ "$code" = 0 ] || echo "clip $1 can't be rendered" >&2
    ;;
  # The shape of a two-day job: it works on, says so, and reports how far it is.
  long)
    frame=0
    while [ "$frame" -lt "$seconds" ]; do
      sleep 1
      frame=$((frame + 1))
      echo "frame $frame of $seconds of $1"
      [ $((frame % 5)) != 0 ] || "$CALLSHEET" -q notify --progress $((frame * 100 / seconds)) --status "frame $frame of $seconds"
    done
    ;;
  # More output than is kept.
  noisy) head -c 3000000 /dev/zero | tr '\0' 'x' | fold -w 99 ;;
  # Ends only by SIGKILL, and leaves a daemon behind; somebody cancels it.
  stubborn)
    trap '' TERM
    (setsid sh -c 'trap "" TERM; sleep 86400' </dev/null >/dev/null 2>&1 &)
    sleep 86400 &
    wait
    sleep 86400
    ;;
esac
exit "$code"
