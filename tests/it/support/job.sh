# The command of the tests; see service.rs. Evidence files are renamed into place, so that what is there is whole.
evidence=$1 job=$2 attempt=$3 todo=$4
now() { echo "$EPOCHREALTIME"; }
note() { echo "$2" >"$evidence/.$job.$attempt.$1.$$" && mv "$evidence/.$job.$attempt.$1.$$" "$evidence/$job.$attempt.$1"; }
note start "$$ $(now)"
code=0
IFS=+ read -ra words <<<"$todo"
for word in "${words[@]}"; do
  value=${word#*:}
  case $word in
    ignore-term) trap '' TERM ;;
    note-term) trap 'note term "$(now)"; note end "$(now)"; exit 0' TERM ;;
    run:*) sleep "$value" ;;
    wait) while [ ! -e "$evidence/go" ]; do sleep 0.02; done ;;
    say:*) echo "$value" ;;
    complain:*) echo "$value" >&2 ;;
    daemon)
      # A double fork into a session of its own that ignores SIGTERM and has closed all it inherited.
      (setsid bash -c 'trap "" TERM; echo $$ >"$0.daemon"; while :; do sleep 0.1; done' "$evidence/$job.$attempt" </dev/null >/dev/null 2>&1 &)
      while [ ! -s "$evidence/$job.$attempt.daemon" ]; do sleep 0.01; done
      ;;
    progress:*) "$BINARY" notify --progress "$value" --status "at $value" ;;
    environment) env >"$evidence/$job.$attempt.environment" ;;
    kill:*) note end "$(now)"; kill -s "$value" $$ ;;
    exit:*) code=$value ;;
  esac
done
note end "$(now)"
exit "$code"
