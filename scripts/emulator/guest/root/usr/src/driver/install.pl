#!/bin/bash
# Stand-in for the driver sources' install.pl: it says what it does, and with --build-only leaves
# packages where the real one does, made by the real rpmbuild and dpkg-deb. Files beside it:
#
#   build        A, B or C: which of the lab's builds of mlx5_core the packages bring (default B)
#   version      of the packages (default 25.10)
#   debs         if there: debs in the place of RPMs
#   only         if there: just these packages of `ofed-scripts mlnx-tools mlnx-ofa_kernel`
#   fault        if there: a script that is run before the last package is built
#   scriptlet    if there: a script that the package manager runs before it installs the last one
#
# The arguments it was called with are kept in `arguments`, a line each.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

value() {
    if [ -e "$1" ]; then cat "$1"; else echo "$2"; fi
}

printf '%s\n' "$@" >arguments
build=$(value build B)
version=$(value version 25.10)
release=$(uname -r)
machine=$(uname -m)
top=$(mktemp -d /var/tmp/OFED_topdir.XXXXXX)
trap 'rm -rf "$top"' EXIT

# The files of a package, below the directory $2.
fill() {
    case $1 in
    ofed-scripts)
        mkdir -p "$2/usr/bin"
        printf '#!/bin/sh\necho MLNX_OFED_LINUX-%s\n' "$version" >"$2/usr/bin/ofed_info"
        chmod 755 "$2/usr/bin/ofed_info"
        ;;
    mlnx-tools)
        mkdir -p "$2/usr/share/mlnx_ofed"
        echo "$version" >"$2/usr/share/mlnx_ofed/tools"
        ;;
    mlnx-ofa_kernel)
        modules=$2/lib/modules/$release/extra/mlnx-ofa_kernel/drivers/net/ethernet/mellanox
        mkdir -p "$modules"
        cp "/opt/lab/driver/$build/mlx5_core.ko" "$modules"
        [ ! -e "/opt/lab/driver/$build/mlx5_ib.ko" ] || cp "/opt/lab/driver/$build/mlx5_ib.ko" "$modules"
        ;;
    esac
}

rpm_of() {
    local target=RPMS/redhat-release-9.4-0.4.el9/$machine
    mkdir -p "$target"
    fill "$1" "$top/$1"
    (cd "$top/$1" && find . -type f | cut -c 2-) >"$top/$1.files"
    local scriptlet=
    if [ -e scriptlet ] && [ "$1" = mlnx-ofa_kernel ]; then
        scriptlet="%pre"$'\n'$(cat scriptlet)
    fi
    cat >"$top/$1.spec" <<SPEC
%define debug_package %{nil}
%define __os_install_post %{nil}
%define _build_id_links none
%define _binary_payload w1.gzdio
Name: $1
Version: $version
Release: 1.rhel9u4
Summary: the lab's $1
License: GPL
AutoReqProv: no
Requires: nothing-that-there-is
%description
%install
cp -a $top/$1/. %{buildroot}
$scriptlet
%files -f $top/$1.files
SPEC
    rpmbuild --quiet -bb --define "_topdir $top" --define "_buildhost lab" "$top/$1.spec"
    mv "$top/RPMS/$machine/"*.rpm "$target"
}

deb_of() {
    local target=DEBS/ubuntu22.04/$machine name=${1//_/-}
    mkdir -p "$target" "$top/$1/DEBIAN"
    fill "$1" "$top/$1"
    cat >"$top/$1/DEBIAN/control" <<CONTROL
Package: $name
Version: $version-1
Architecture: $(dpkg --print-architecture)
Maintainer: the lab
Depends: nothing-that-there-is
Description: the lab's $1
CONTROL
    if [ -e scriptlet ] && [ "$1" = mlnx-ofa_kernel ]; then
        { echo '#!/bin/sh'; cat scriptlet; } >"$top/$1/DEBIAN/preinst"
        chmod 755 "$top/$1/DEBIAN/preinst"
    fi
    # Compressing them would be half of their tests' work.
    dpkg-deb -Znone --build "$top/$1" "$target/${name}_$version-1.deb" >/dev/null
}

for package in $(value only "ofed-scripts mlnx-tools mlnx-ofa_kernel"); do
    if [ -e fault ] && [ "$package" = mlnx-ofa_kernel ]; then
        bash -euo pipefail fault
    fi
    if [ -e debs ]; then
        echo "Build $package $version deb"
        deb_of "$package"
    else
        echo "Build $package $version RPM"
        rpm_of "$package"
    fi
done
echo "Build passed successfully"
