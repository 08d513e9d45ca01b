# Sourced by launch, test and check: makes the checkout's .venv what they need, once.
# Sets $checkout and $venv. Needs nothing but a POSIX shell and python3.

checkout=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$checkout/.venv

# prepare EXTRAS: .venv holds the project and these extras; returns at once where it does already.
prepare() {
    stamp=$venv/installed-$1
    is_installed && return
    [ -w "$checkout" ] || die 2 "cannot write to $checkout, where .venv is to be made"
    require_python
    # The lock is the open file's: it ends with the subshell, however that ends.
    (
        trap 'kill "${reporter-}" 2>/dev/null; exit 130' INT
        "$python" -c "$lock"
        is_installed || install_project "$1"
    ) 9<"$checkout/pyproject.toml"
}

# prepare_tests EXTRAS: the same, and the programs that the tests use, where root can install them.
prepare_tests() {
    case $1 in *others*) darknet=darknet:darknet ;; *) darknet= ;; esac
    announce_programs
    find_python || apt_install python3-venv || true
    prepare "$1"
    require_program ip iproute2 "between network namespaces"
    [ -z "$darknet" ] || require_program darknet darknet "against the Darknet program"
    require_program chromium chromium "of the web page"
}

# What will happen to the system, before it does.
announce_programs() {
    missing=
    for each in ip:iproute2 $darknet chromium:chromium; do
        command -v "${each%%:*}" >/dev/null || missing="$missing ${each#*:}"
    done
    [ -z "$missing" ] || say "some tests need the system packages$missing: as root, this" \
        "installs them with apt-get in a few minutes; otherwise those tests are skipped"
}

# require_program NAME PACKAGE TESTS: install the package if the program is missing.
require_program() {
    command -v "$1" >/dev/null || apt_install "$2" ||
        say "no \`$1\` here (package $2): the tests $3 are skipped"
}

is_installed() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]; }

# What an installation was made for. The place counts: console scripts hold absolute paths.
fingerprint() {
    "$venv/bin/python" -V 2>/dev/null && cksum <"$checkout/pyproject.toml" && echo "$checkout"
}

install_project() {
    is_usable || make_environment
    # Left behind by an installation that was killed half-way.
    : >"$venv/incomplete"
    say "installing dist_net[$1] and what it needs into .venv (the first time: about a minute)"
    status=0
    quietly install_packages -e "${checkout}[$1]" || status=1
    rm "$venv/incomplete"
    [ $status -eq 0 ] || die 1 "the installation failed, as told above; call this again to retry"
    fingerprint >"$stamp"
}

is_usable() {
    [ ! -e "$venv/incomplete" ] && fingerprint >/dev/null && { has_pip || has_uv; }
}

make_environment() {
    say "making .venv with $("$python" -V)"
    rm -rf "$venv"
    mkdir "$venv"
    : >"$venv/incomplete"
    if has_venv "$python"; then
        quietly "$python" -m venv "$venv"
    else
        quietly uv venv --allow-existing --python "$python" "$venv"
    fi
}

# Without --no-compile, pip compiles thousands of modules that are never imported: 5 s of 29.
install_packages() {
    if has_pip; then "$venv/bin/python" -m pip install --no-compile "$@"
    else uv pip install --python "$venv/bin/python" "$@"; fi
}

has_pip() { "$venv/bin/python" -c 'import pip' 2>/dev/null; }
has_uv() { command -v uv >/dev/null; }
has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Sets $python to the first that is new enough and can make an environment. Each one is run: a
# version manager's stand-in may have nothing behind it.
find_python() {
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        "$python" -c "$new_enough" 2>/dev/null && { has_venv "$python" || has_uv; } && return
    done
    return 1
}

require_python() {
    find_python && return
    python3 -c "$new_enough" 2>/dev/null ||
        die 2 "needs Python 3.11 or newer as python3, found $(python3 -V 2>/dev/null || echo none)"
    ! command -v apt-get >/dev/null ||
        die 2 "python3 came without venv; run: sudo apt-get install python3-venv"
    die 2 "python3 came without venv and ensurepip; install those, or uv, and call this again"
}

new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

lock='
import fcntl, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for another call that is installing into .venv", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
'

apt_install() {
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
    say "installing $1 with apt-get"
    apt_log=$(mktemp)
    status=0
    reporting "$apt_log" update_and_install "$1" || status=1
    [ $status -eq 0 ] || say "that failed: $(tail -n 1 "$apt_log")"
    rm "$apt_log"
    return $status
}

update_and_install() (
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update && apt-get -q -y install "$1"
)

# Runs a command whose output matters only if it fails.
quietly() {
    reporting "$venv/install.log" "$@" && return
    cat "$venv/install.log" >&2
    return 1
}

# reporting LOG COMMAND...: its output goes to LOG, whose last line is shown every ten seconds.
reporting() {
    log=$1
    shift
    # The loop ignores SIGINT, as all that a shell starts in the background; it ends with the shell.
    (
        trap 'kill $!; exit' TERM
        while sleep 10 & wait $! && kill -0 $$; do say "... $(tail -n 1 "$log")"; done
    ) 9<&- &
    reporter=$!
    code=0
    "$@" >"$log" 2>&1 </dev/null || code=1
    kill "$reporter"
    return $code
}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$2"
    exit "$1"
}
