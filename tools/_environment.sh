# Shared by tools/rear, tools/test and .ci/run: makes the project's own virtual environment and keeps it up to date.
# Sourced by bash; sets `root` and `venv`.

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)
venv=$root/.venv
python=${PYTHON:-python3}

# Programs that the tests use when they are there, and the Debian packages that they come in.
external_tools=(strace:strace unzip:unzip zip:zip 7z:p7zip-full bsdtar:libarchive-tools fusermount3:fuse3)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$@"
    exit 1
}

# Names of external_tools that are not installed: `missing_tools 1` prints the programs, `missing_tools 2` the packages.
missing_tools() {
    local tool
    for tool in "${external_tools[@]}"; do
        command -v "${tool%:*}" >/dev/null || cut -d: -f"$1" <<<"$tool"
    done
}

# Debian packages without which the environment cannot be made, or not all of it. zipfile-deflate64 has a wheel for
# CPython 3.10 alone, so pip compiles it: that needs a compiler and Python's headers.
missing_packages() {
    "$python" -c 'import venv, ensurepip' 2>/dev/null || echo python3-venv
    missing_for_deflate64
}

missing_for_deflate64() {
    command -v "${CC:-cc}" >/dev/null || command -v gcc >/dev/null || echo gcc libc6-dev
    [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || echo python3-dev
}

check_python() {
    command -v "$python" >/dev/null || die "$python not found: apt install python3 python3-venv"
    "$python" -ISc 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "needs Python 3.11 or newer, $python is $("$python" -V 2>&1); name another one with PYTHON=..."
}

# What the environment depends on; a folder that was moved needs a new one, too.
fingerprint() {
    "$python" -ISc 'import sys; print(sys.version, sys.base_prefix)'
    printf '%s\n' "$root"
    cat "$root/pyproject.toml"
}

up_to_date() { # stamp fingerprint
    [ -e "$1" ] && [ "$(<"$1")" = "$2" ]
}

pip_try() {
    "$venv/bin/python" -m pip install --disable-pip-version-check "$@" >"$venv/pip.log" 2>&1 </dev/null
}

pip_install() {
    if ! pip_try "$@"; then
        local log=$venv/pip.log
        tail -n 25 "$log" >&2
        local packages
        packages=$(missing_packages | xargs)
        die "pip failed (all of it: $log)${packages:+; probably because this is missing: apt install $packages}"
    fi
}

# make_environment [test]: rear and what it needs; with `test` also what the tests and nox need.
make_environment() {
    check_python
    local wanted base=$venv/.installed extra=$venv/.installed-test
    wanted=$(fingerprint)
    if up_to_date "$base" "$wanted" && { [ $# = 0 ] || up_to_date "$extra" "$wanted"; }; then
        return
    fi
    (
        # Two first runs at once: the second waits here, and then finds the work done.
        flock 9
        if ! up_to_date "$base" "$wanted"; then
            "$python" -c 'import venv, ensurepip' 2>/dev/null ||
                die "$python has no venv module: apt install $(missing_packages | xargs)"
            say "making the virtual environment .venv (once, under a minute)"
            rm -rf -- "$venv"
            "$python" -m venv "$venv" >&2
            pip_install -e "$root"
            pip_try -e "$root[deflate64]" ||
                say "going on without Deflate64, an old kind of compression: apt install $(missing_for_deflate64 | xargs), and remove .venv"
            printf '%s\n' "$wanted" >"$base"
        fi
        if [ $# != 0 ] && ! up_to_date "$extra" "$wanted"; then
            say "adding what the tests need to .venv (once)"
            pip_install -e "$root[test]" nox
            printf '%s\n' "$wanted" >"$extra"
        fi
    ) 9>"$root/.venv.lock"
}
