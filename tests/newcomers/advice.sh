# Sourced by the scripts beside it: `advised TEXT COMMAND…` runs a wrong command, which must exit with code 2 and say TEXT.
advised() {
    local text=$1 said code=0
    shift
    said=$("$@" 2>&1) || code=$?
    if [[ $code != 2 || $said != *"$text"* || $said == *Traceback* ]]; then
        printf '%s: exit code %s; expected 2 and "%s"; it said:\n%s\n' "$*" "$code" "$text" "$said" >&2
        return 1
    fi
    echo "advised: $text"
}
