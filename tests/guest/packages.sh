# shellcheck shell=bash
# Debian packages without installing them: sourced by bash scripts of tests/guest and bench.
#
# Everything lands below $GUISE_CACHE; nothing here needs root or changes the system.  apt gets a
# private root directory with an empty list of installed packages, so that its answers depend on
# the archive alone.  Mirrors are those that this machine already uses, plus backports from the
# same place.

GUISE_CACHE=${GUISE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/guise}

say() { echo "$*" >&2; }

apt_private() # COMMAND ARGS...: apt-get in the private root; ARCHITECTURE chooses which, amd64 unless told
{
    local command=$1
    shift
    "$command" -qq -c "$GUISE_CACHE/apt-${ARCHITECTURE:-amd64}/apt.conf" "$@"
}

# The mirrors of this machine's own sources, as one-line sources with backports.  Of i386 only the
# main archive: a handful of old programs needs no more.
apt_sources()
{
    apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Identifier: Packages' |
        awk -v i386="$([ "${ARCHITECTURE:-amd64}" = i386 ] && echo 1)" '
            $2 ~ /^bookworm(-updates|-security)?$/ && $3 == "main" && !seen[$1 $2]++ {
                 if (!i386 || $2 == "bookworm")
                     print "deb", $1, $2, "main"
                 if (!i386 && $2 == "bookworm")
                     print "deb", $1, "bookworm-backports main"
             }'
}

apt_prepare() # once a day: the private root and fresh package lists
{
    local root=$GUISE_CACHE/apt-${ARCHITECTURE:-amd64}
    [ -z "$(find "$root/ready" -newer "${BASH_SOURCE[0]}" -mtime -1 2>/dev/null)" ] || return 0
    mkdir -p "$root"/{lists/partial,archives/partial,state,none.d}
    : >"$root/state/status"
    cat >"$root/apt.conf" <<EOF
APT::Architecture "${ARCHITECTURE:-amd64}";
APT::Architectures { "${ARCHITECTURE:-amd64}"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Debug::NoLocking "true";
Dir::Etc::SourceList "$root/sources.list";
Dir::Etc::SourceParts "$root/none.d";
Dir::Etc::Preferences "$root/none";
Dir::Etc::PreferencesParts "$root/none.d";
Dir::State "$root/state";
Dir::State::Lists "$root/lists";
Dir::State::status "$root/state/status";
Dir::Cache "$root";
EOF
    apt_sources >"$root/sources.list"
    if [ ! -s "$root/sources.list" ]; then
        say "no Debian bookworm mirror among this machine's apt sources (try apt-get update)"
        return 1
    fi
    apt_private apt-get update >&2 && touch "$root/ready"
}

release_option() # RELEASE: fills `release`: backports only when asked for, of the rest the newest, security included
{
    release=()
    [ "$1" = bookworm ] || release=(-t "$1")
}

# Several scripts may want the same thing at the same time: one fetches, the others wait.
locked() # COMMAND ARGS...
{
    mkdir -p "$GUISE_CACHE"
    (flock 9 && "$@") 9>"$GUISE_CACHE/lock"
}

packages_extract() { locked packages_extract_alone "$@"; }
package_one() { locked package_one_alone "$@"; }

packages_extract_alone() # DIRECTORY RELEASE PACKAGE...: these with all they depend on, unpacked, once
{
    local directory=$1 release deb
    release_option "$2"
    shift 2
    [ "$(cat "$directory/.packages" 2>/dev/null)" != "$*" ] || return 0
    apt_prepare || return 1
    local downloads=$directory.debs
    rm -rf "$directory" "$downloads"
    mkdir -p "$directory" "$downloads/partial"
    say "fetching $*"
    apt_private apt-get -o Dir::Cache::archives="$downloads" "${release[@]}" install -y --download-only "$@" >&2 || return 1
    for deb in "$downloads"/*.deb; do
        dpkg-deb -x "$deb" "$directory" || return 1
    done
    rm -rf "$downloads"
    echo "$*" >"$directory/.packages"
}

package_one_alone() # DIRECTORY RELEASE PACKAGE: a single package, unpacked, without what it depends on
{
    local directory=$1 package=$3 release
    release_option "$2"
    [ ! -e "$directory/.packages" ] || return 0
    apt_prepare || return 1
    rm -rf "$directory"
    mkdir -p "$directory"
    say "fetching $package"
    (cd "$directory" && apt_private apt-get "${release[@]}" download "$package" >&2 &&
        dpkg-deb -x ./*.deb . && rm -f ./*.deb) || return 1
    echo "$package" >"$directory/.packages"
}

kernel_package() # cloud|generic|backports|backports-cloud: prints RELEASE and the name of the newest image package
{
    local suite=bookworm release meta
    case $1 in
    cloud) meta=linux-image-cloud-amd64 ;;
    generic) meta=linux-image-amd64 ;;
    backports) meta=linux-image-amd64 suite=bookworm-backports ;;
    backports-cloud) meta=linux-image-cloud-amd64 suite=bookworm-backports ;;
    *)
        say "no kernel is called $1 (cloud, generic, backports, backports-cloud)"
        return 1
        ;;
    esac
    apt_prepare || return 1
    release_option "$suite"
    echo "$suite $(apt_private apt-get "${release[@]}" install -s "$meta" |
        awk '$1 == "Inst" && $2 ~ /^linux-image-[0-9]/ { sub(/-unsigned$/, "", $2); print $2; exit }')"
}

# The archive is asked once a day; without a network what it said last will do.
kernel_name() # NAME: prints what kernel_package prints
{
    local known=$GUISE_CACHE/kernels/$1.name answer
    mkdir -p "$GUISE_CACHE/kernels"
    if [ -z "$(find "$known" -mtime -1 2>/dev/null)" ]; then
        answer=$(kernel_package "$1")
        if [[ $answer == *" "linux-image-* ]]; then
            echo "$answer" >"$known"
        elif [ ! -e "$known" ]; then
            say "the archive has no kernel $1"
            return 1
        fi
    fi
    cat "$known"
}

kernel_directory() # NAME: prints the directory with boot/vmlinuz-* and lib/modules of that kernel
{
    local release package
    read -r release package < <(kernel_name "$1") || return 1
    local directory=$GUISE_CACHE/kernels/$package
    package_one "$directory" "$release" "$package" || return 1
    echo "$directory"
}

kernel_image() # NAME: prints the path of the kernel file
{
    local directory
    directory=$(kernel_directory "$1") && echo "$directory"/boot/vmlinuz-*
}
