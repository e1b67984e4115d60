#!/usr/bin/env bash
# A control plane of Kubernetes, built from Debian's own source package into FOLDER: the newest that
# Debian has with all its parts is 1.20.2, of bookworm. As root; ten minutes on two cores, 3 GB meanwhile.
# Exit status 3: it cannot be built on this machine; any other but 0: the build is broken.
set -euo pipefail
cannot() { echo "no control plane can be built here: $*" >&2; exit 3; }
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
folder=$1
[ "$(id -u)" = 0 ] || cannot "that needs root, for Debian's packages"
grep -qs '^VERSION_CODENAME=bookworm$' /etc/os-release || cannot "this is not Debian 12 (bookworm)"

work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
mkdir -p "$work"/{sources,lists/partial,kubernetes,etcd} "$folder"

# Sources of the machine's own Debian, in lists of our own: the machine's stay as they are.
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
  [ -f "$file" ] || continue
  case $file in
    *.sources) sed 's/^Types:.*/Types: deb-src/' "$file" ;;
    *.list) sed -n 's/^deb /deb-src /p' "$file" ;;
  esac > "$work/sources/$(basename "$file")"
done
of_ours=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/sources"
  -o "Dir::State::lists=$work/lists" -o APT::Sandbox::User=root)

apt-get -qq update || cannot "Debian's packages cannot be reached"
DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends \
  dpkg-dev golang-go make openssl rsync golang-github-modern-go-reflect2-dev \
  || cannot "Go and what it needs cannot be installed"
cd "$work"
apt-get -qq "${of_ours[@]}" update || true  # of whatever else the machine lists
apt-get -qq "${of_ours[@]}" source --download-only kubernetes/bookworm \
  || cannot "Debian's source of Kubernetes cannot be reached"
tar xzf kubernetes_*.orig.tar.gz -C kubernetes --strip-components=1
apt-get -qq -o APT::Sandbox::User=root download etcd-server || cannot "etcd cannot be reached"
dpkg-deb --extract etcd-server_*.deb etcd  # not installed: that would start a service

# Its reflect2 (1.0.1) crashes when a newer Go has compiled it; Debian's own (1.0.2) does not.
reflect2=kubernetes/vendor/github.com/modern-go/reflect2
rm -f "$reflect2"/*.{go,s}
cp /usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$reflect2"

export GOPATH=$work/kubernetes/.go GOCACHE=$work/cache HOME=$work
export CGO_ENABLED=0 GO111MODULE=off GOPROXY=off
mkdir -p "$GOPATH/src/k8s.io"
ln -s ../../.. "$GOPATH/src/k8s.io/kubernetes"
make -C "$GOPATH/src/k8s.io/kubernetes" GOLDFLAGS="-s -w" KUBE_GIT_VERSION=v1.20.2 \
  WHAT="cmd/kube-apiserver cmd/kube-controller-manager cmd/kube-scheduler"

# The scheduler last: who finds it finds all.
cp etcd/usr/bin/etcd "$folder/etcd"
for name in kube-apiserver kube-controller-manager kube-scheduler; do
  cp "kubernetes/_output/local/go/bin/$name" "$folder/$name.new"
  mv "$folder/$name.new" "$folder/$name"
done
