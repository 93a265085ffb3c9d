# shellcheck shell=bash
# What scripts/lab and scripts/test share: looks at the host, installs what is missing, makes the Python environment.
# Sourced, not run. Quiet when there is nothing to do; every long step says what it is and how long it took.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
# Where the administrator's programs are: `su` without `-` leaves them out.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH
SERVICE_ACCOUNT=vmlab
SERVICE_HOME=/var/lib/vmlab

# Debian packages, with the oldest version that will do (empty: any). The versions that vmlab itself insists on are in
# vmlab/host/doctor.py; these are Debian's spelling of them.
PACKAGES=(
    "qemu-system-x86 1:9.0"          # mapped-ram snapshots
    "qemu-utils 1:9.0"
    "libvirt-daemon 10.0"            # the session daemon ...
    "libvirt-daemon-driver-qemu 10.0"
    "libvirt-clients 10.0"           # ... and virsh, which sees the same machines
    "libvirt-dev 10.0"               # libvirt-python is compiled against it
    "ovmf "                          # UEFI guests
    "pkg-config " "gcc " "libc6-dev " "python3-dev " "python3-venv "
    "tini "                          # ended guests are reaped at once
    "mmdebstrap 1.5"                 # makes the guests' systems from Debian packages ...
    "uidmap "                        # ... without root
    "debian-archive-keyring "
    "e2fsprogs 1.47.1"               # makes the guests' disks from tar files, without root ...
    "libarchive13 |libarchive13t64"  # ... with this
    "xz-utils " "zstd "
    "ca-certificates "
)
PACKAGES_TEST=(
    "shellcheck "
    "chromium "                      # tests/browser and scripts/pictures
    "dosfstools " "mtools " "ntfs-3g " "xfsprogs " "lvm2 "   # file systems to compare
)

MIN_DISK_MB=6000        # packages, environment, the built-in guests and some room for snapshots
MIN_RAM_MB=1500

# --- words -------------------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }

die() {  # die MESSAGE [NEXT STEP]
    printf 'vmlab: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  Next: %s\n' "$2" >&2
    exit 1
}

LOG=
cleanup_log() { [ -z "$LOG" ] || rm -f "$LOG"; }

# step TEXT COMMAND...: run it with its output in a log; show the text, then the seconds; on failure, the log's end.
step() {
    local text=$1 status=0 start=$SECONDS pid
    shift
    [ -n "$LOG" ] || LOG=$(mktemp "${TMPDIR:-/tmp}/vmlab-setup.XXXXXX")
    : >"$LOG"
    if [ -t 1 ]; then
        ("$@") >"$LOG" 2>&1 </dev/null &
        pid=$!
        while kill -0 "$pid" 2>/dev/null; do
            printf '\r%s ... %d s ' "$text" $((SECONDS - start))
            sleep 0.5
        done
        wait "$pid" || status=$?
        printf '\r%s ... ' "$text"
    else
        printf '%s ... ' "$text"
        ("$@") >"$LOG" 2>&1 </dev/null || status=$?
    fi
    if [ "$status" -eq 0 ]; then
        printf 'done (%d s)\n' $((SECONDS - start))
    else
        printf 'failed\n'
        tail -n 20 "$LOG" | sed 's/^/  | /' >&2
    fi
    return "$status"
}

# --- the host ----------------------------------------------------------------------------------------------------------

check_host() {
    local arch free ram
    arch=$(uname -m)
    [ "$arch" = x86_64 ] || die "this machine is $arch; vmlab so far runs only on x86_64 (Debian's amd64)."
    command -v apt-get >/dev/null || die "this is not Debian: there is no apt here." "use Debian 12 or 13; a container of it will do"
    # shellcheck source=/dev/null
    . /etc/os-release
    case "${ID:-}:${VERSION_ID:-}" in
    debian:12 | debian:13) ;;
    debian:1[01] | debian:[0-9]) die "this is Debian $VERSION_ID; vmlab needs Debian 12 or 13." ;;
    debian:*) ;;
    *) say "This is ${PRETTY_NAME:-not Debian}; vmlab is tested on Debian 12 and 13 only. Trying anyway." ;;
    esac
    free=$(df -Pm "$ROOT" | awk 'NR == 2 {print $4}')
    if [ ! -d "$VENV" ] && [ "$free" -lt "$MIN_DISK_MB" ]; then
        die "only $free MB are free on the disk of $ROOT; setting up takes up to $MIN_DISK_MB MB." "make room"
    fi
    ram=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
    [ "$ram" -ge "$MIN_RAM_MB" ] ||
        die "this machine has $ram MB of memory; the desktop guest and JupyterLab need $MIN_RAM_MB MB."
}

# Anything that changes the system goes through here.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
        return
    fi
    command -v sudo >/dev/null ||
        die "the system lacks something (above), and there is no sudo to install it with." \
            "run this once as root, or let root install sudo and allow it to you"
    sudo -- "$@"
}

# Ask for the password where a person can see the question, not inside a step.
get_root() {
    [ "$(id -u)" -ne 0 ] || return 0
    command -v sudo >/dev/null || as_root true
    sudo -n true 2>/dev/null && return 0
    [ -t 0 ] || die "sudo wants a password, and there is nobody to type it." "run this in a terminal"
    say "sudo asks for your password, to install system packages:"
    sudo -v || die "sudo refused." "ask whoever administers this machine to run scripts/lab once"
}

# --- Debian packages ---------------------------------------------------------------------------------------------------

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@"
}

# Both print nothing for an unknown package.
installed_version() {
    { dpkg-query -W -f '${db:Status-Status} ${Version}' "$1" 2>/dev/null || true; } | awk '$1 == "installed" {print $2}'
}

candidate_version() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" {print $2}'
}

# newer_or_same HAVE WANT: WANT may be empty. "~~" so that a backport of the wanted version counts.
newer_or_same() { [ -n "$1" ] && { [ -z "$2" ] || dpkg --compare-versions "$1" ge "$2~~"; }; }

# Put the names of what is missing or too old into MISSING, as "name minimum [alternative]".
find_missing() {
    local spec name least other
    MISSING=()
    for spec in "$@"; do
        other=${spec#*|}
        [ "$other" != "$spec" ] || other=
        read -r name least <<<"${spec%%|*}"
        newer_or_same "$(installed_version "$name")" "$least" && continue
        [ -z "$other" ] || ! newer_or_same "$(installed_version "$other")" "$least" || continue
        MISSING+=("$name|$least|$other")
    done
}

install_packages() {
    local item name least other plain=() old=()
    find_missing "$@"
    [ ${#MISSING[@]} -gt 0 ] || return 0
    say "System packages to install or renew: $(printf '%s\n' "${MISSING[@]}" | cut -d'|' -f1 | paste -sd' ')"
    get_root
    update_lists
    for item in "${MISSING[@]}"; do
        IFS='|' read -r name least other <<<"$item"
        if newer_or_same "$(candidate_version "$name")" "$least"; then
            plain+=("$name")
        elif [ -n "$other" ] && newer_or_same "$(candidate_version "$other")" "$least"; then
            plain+=("$other")
        else
            old+=("$name|$least")
        fi
    done
    if [ ${#old[@]} -gt 0 ]; then
        install_from_backports "${old[@]}"
    fi
    if [ ${#plain[@]} -gt 0 ]; then
        step "Installing ${#plain[@]} system packages" apt_get install --no-install-recommends "${plain[@]}" ||
            die "apt could not install them (its last lines are above)."
    fi
}

update_lists() {
    step "Asking the package mirror what there is" apt_get update -o APT::Update::Error-Mode=any ||
        die "apt cannot reach its package mirror (its last lines are above)." \
            "check the network, the proxy and /etc/apt/sources.list*, until 'sudo apt-get update' works"
}

# install_from_backports NAME|MINIMUM...
install_from_backports() {
    local item name least have found codename names=()
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    for item in "$@"; do
        IFS='|' read -r name least <<<"$item"
        have=$(installed_version "$name")
        [ -n "$have" ] || have=$(candidate_version "$name")
        [ "$codename" = bookworm ] ||
            die "this system offers $name ${have:-not at all}, but vmlab needs ${least:-it}." "use Debian 12 or 13"
        names+=("$name")
    done
    say "Debian 12's own versions of these are too old for vmlab; they come from bookworm-backports: ${names[*]}"
    if ! has_backports; then
        add_backports
    fi
    for item in "$@"; do
        IFS='|' read -r name least <<<"$item"
        found=
        while read -r have; do
            ! newer_or_same "$have" "$least" || found=$have
        done < <(LC_ALL=C apt-cache madison "$name" | awk -F'|' '{gsub(/ /, "", $2); print $2}')
        [ -n "$found" ] || die "bookworm-backports on this machine's mirror has no $name of version $least or newer."
    done
    step "Installing ${#names[@]} packages from bookworm-backports" \
        apt_get install --no-install-recommends -t bookworm-backports "${names[@]}" ||
        die "apt could not install them (its last lines are above)."
}

# What apt is configured to use, one package index a line, whatever the form of its sources.
apt_sources() {
    # shellcheck disable=SC2016  # apt fills these in, not the shell
    apt-get indextargets --format '$(RELEASE)|$(CODENAME)|$(LABEL)|$(COMPONENT)|$(REPO_URI)|$(SIGNED_BY)' 'Created-By: Packages'
}

has_backports() { apt_sources | grep -c bookworm-backports >/dev/null; }

# Backports from the mirror that this machine already uses for Debian itself, in apt's one-line or deb822 form alike.
add_backports() {
    local target mirror='' key='' file=/etc/apt/sources.list.d/vmlab-backports.sources
    # The release itself, not its -updates and not another archive's packages.
    target=$(apt_sources | awk -F'|' '$1 == "bookworm" || $1 == "stable" || $1 == "oldstable" {
        if ($3 == "Debian" && $4 == "main" && !found++) print $5 "|" $6}')
    IFS='|' read -r mirror key <<<"$target"
    [ -n "$mirror" ] || die "apt on this machine names no mirror of Debian 12 itself." "add one to /etc/apt/sources.list"
    case "$key" in
    /*) ;;
    *) key=/usr/share/keyrings/debian-archive-keyring.gpg ;;
    esac
    say "Adding bookworm-backports from this machine's own mirror: $file"
    say "  Nothing else is taken from it by itself. To undo: delete that file."
    {
        printf '# Added by vmlab, which needs a newer QEMU and libvirt than Debian 12 has. Delete it when you no longer use vmlab.\n'
        printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\n' "$mirror"
        [ ! -e "$key" ] || printf 'Signed-By: %s\n' "$key"
    } | as_root tee "$file" >/dev/null
    update_lists
}

# --- accounts ----------------------------------------------------------------------------------------------------------

# QEMU never runs as root: where we are root, it runs as an account of its own.
ensure_account() {
    if [ "$(id -u)" -eq 0 ]; then
        if ! getent passwd "$SERVICE_ACCOUNT" >/dev/null; then
            say "Making the account '$SERVICE_ACCOUNT', which QEMU runs as (its home: $SERVICE_HOME)."
            useradd --system --user-group --home-dir "$SERVICE_HOME" --create-home --shell /usr/sbin/nologin \
                --comment "vmlab's guests" "$SERVICE_ACCOUNT" || die "the account '$SERVICE_ACCOUNT' could not be made."
        fi
        allow_kvm "$SERVICE_ACCOUNT"
        allow_subids "$SERVICE_ACCOUNT"
    else
        allow_kvm "$(id -un)"
        allow_subids "$(id -un)"
    fi
}

# User numbers of its own for an account, in which it can build a guest's system without being root.
allow_subids() {
    local first=200000
    if grep -q "^$1:" /etc/subuid 2>/dev/null && grep -q "^$1:" /etc/subgid 2>/dev/null; then
        return
    fi
    # Behind all ranges that are taken.
    first=$(cat /etc/subuid /etc/subgid 2>/dev/null | awk -F: -v n="$first" '$2 + $3 > n { n = $2 + $3 } END { print n }')
    get_root
    as_root usermod --add-subuids "$first-$((first + 65535))" --add-subgids "$first-$((first + 65535))" "$1"
}

# Hardware acceleration, where the CPU has it and only the group is lacking.
allow_kvm() {
    local name=$1 group
    [ -c /dev/kvm ] && grep -qE '^flags.* (vmx|svm)( |$)' /proc/cpuinfo || return 0
    group=$(stat -c %G /dev/kvm)
    [ "$group" = kvm ] && ! id -nG "$name" | tr ' ' '\n' | grep -qx kvm || return 0
    # A desktop session has it through an access list.
    { [ "$(id -un)" != "$name" ] || [ ! -w /dev/kvm ]; } || return 0
    get_root
    as_root usermod -aG kvm "$name"
    [ "$(id -u)" -eq 0 ] || say "You are now in the group 'kvm': log in again, and guests run many times faster."
}

# --- Python ------------------------------------------------------------------------------------------------------------

find_python() {
    local candidate
    # Debian's own first: its headers are what libvirt-python is compiled with.
    for candidate in /usr/bin/python3 python3; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            PYTHON=$candidate
            return 0
        fi
    done
    die "there is no Python 3.11 or newer here." "use Debian 12 or 13, whose python3 is new enough"
}

pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --quiet "$@"; }

install_locked() {  # install_locked LOCK
    # "&&", because `set -e` does not hold inside a step. Without build isolation: what is compiled here (libvirt-python)
    # is compiled with the pinned tools just installed.
    pip_install --require-hashes -r "$ROOT/requirements-build.lock" &&
        pip_install --require-hashes --no-build-isolation -r "$ROOT/$1" &&
        # Its JavaScript is made by ensure_extension, again whenever it has changed.
        HATCH_JUPYTER_BUILDER_SKIP_NPM=1 pip_install --no-deps --no-build-isolation --editable "$ROOT" &&
        # JupyterLab's question about news, before anything else, would be the first thing that a newcomer sees.
        "$VENV/bin/jupyter" labextension disable --level=sys_prefix "@jupyterlab/apputils-extension:announcements"
}

# What the environment must equal, as one digest.
venv_digest() {  # venv_digest LOCK
    {
        "$PYTHON" -c 'import sys; print(sys.base_prefix, sys.version)'
        installed_version libvirt-dev
        printf '%s\n' "$ROOT"
        cat "$ROOT/requirements-build.lock" "$ROOT/$1" "$ROOT/pyproject.toml"
    } | sha256sum | cut -d' ' -f1
}

venv_is_current() {  # venv_is_current lab|dev LOCK
    [ -x "$VENV/bin/python" ] && [ "$(cat "$VENV/.vmlab-stamp-$1" 2>/dev/null)" = "$(venv_digest "$2")" ]
}

# ensure_venv lab|dev: make .venv from the lock file, unless a stamp says that it is there and current.
ensure_venv() {
    local kind=$1 lock=requirements.lock version='import sys; print(sys.base_prefix, sys.version)'
    find_python
    # The tests' environment holds all that the lab needs.
    if venv_is_current dev requirements-dev.lock; then return 0; fi
    if [ "$kind" = dev ]; then
        lock=requirements-dev.lock
    elif venv_is_current lab "$lock"; then
        return 0
    fi
    if [ "$("$VENV/bin/python" -c "$version" 2>/dev/null)" != "$("$PYTHON" -c "$version")" ]; then
        rm -rf "$VENV"
        step "Making the Python environment .venv" "$PYTHON" -m venv "$VENV" ||
            die "the Python environment could not be made (last lines above)."
    fi
    rm -f "$VENV"/.vmlab-stamp-*
    step "Installing the pinned Python packages into .venv (a minute or two)" install_locked "$lock" ||
        die "pip could not install the Python packages (its last lines are above)." \
            "check the network and 'pip config list', then run this again"
    venv_digest "$lock" >"$VENV/.vmlab-stamp-$kind"
}

# --- JavaScript ----------------------------------------------------------------------------------------------------------

# What extension/ is built from, as one digest.
extension_digest() {
    (cd "$ROOT/extension" && find package.json package-lock.json tsconfig.json install.json src style schema -type f -print0 |
        sort -z | xargs -0 sha256sum) | sha256sum | cut -d' ' -f1
}

build_extension() {
    # Node and npm are the environment's own; the registry is the one that npm is configured for.
    cd "$ROOT/extension" && npm ci --no-audit --no-fund && npm run build
}

# Build extension/ unless what is there is current, and have JupyterLab find it.
ensure_extension() {
    local stamp=$ROOT/vmlab/static/.stamp link=$VENV/share/jupyter/labextensions/vmlab
    if [ "$(cat "$stamp" 2>/dev/null)" != "$(extension_digest)" ]; then
        PATH=$VENV/bin:$PATH step "Building the JupyterLab extension (half a minute)" build_extension ||
            die "the JupyterLab extension could not be built (last lines above)." "check 'npm config get registry', then run this again"
        extension_digest >"$stamp"
    fi
    # A link, so that what is built again is what JupyterLab shows.
    if [ "$(readlink "$link")" != "$ROOT/vmlab/labextension" ]; then
        rm -rf "$link"
        mkdir -p "$(dirname "$link")"
        ln -s "$ROOT/vmlab/labextension" "$link"
    fi
}

# --- everything --------------------------------------------------------------------------------------------------------

# Build and boot those built-in guests that are missing or out of date; with progress, a second or two if there are none.
# A first start of scripts/lab leaves it to the first use in the notebook; the tests and --run want it done before.
build_images() {
    "$VENV/bin/vmlab" images --build all || die "the built-in guests could not be built." "scripts/lab --setup, then .venv/bin/vmlab doctor"
}

setup() {  # setup lab|dev
    check_host
    if [ "$1" = dev ]; then
        install_packages "${PACKAGES[@]}" "${PACKAGES_TEST[@]}"
    else
        install_packages "${PACKAGES[@]}"
    fi
    ensure_account
    ensure_venv "$1"
    ensure_extension
    trap - EXIT
    cleanup_log
}

trap cleanup_log EXIT
