#!/usr/bin/env bash
# A control plane of Kubernetes, built from Debian's own source package into FOLDER: the newest that
# Debian has with all its parts is 1.20.2. As root, on Debian; ten minutes on two cores, 3 GB meanwhile.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
folder=$1
[ "$(id -u)" = 0 ] || { echo "needs root, for Debian's packages" >&2; exit 1; }
[ -d /etc/apt ] || { echo "needs Debian 12, whose source package of Kubernetes this builds" >&2; exit 1; }

work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
mkdir -p "$work"/{sources,lists/partial,kubernetes} "$folder"

# Sources of the machine's own Debian, in lists of our own: the machine's stay as they are.
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
  case $file in
    *.sources) sed 's/^Types: deb$/Types: deb-src/' "$file" > "$work/sources/$(basename "$file")" ;;
    *.list) sed -n 's/^deb /deb-src /p' "$file" > "$work/sources/$(basename "$file")" ;;
  esac
done
of_ours=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/sources"
  -o "Dir::State::lists=$work/lists" -o APT::Sandbox::User=root)

apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends \
  dpkg-dev etcd-server golang-go rsync golang-github-modern-go-reflect2-dev
(
  cd "$work"
  apt-get -qq "${of_ours[@]}" update
  apt-get -qq "${of_ours[@]}" source --download-only kubernetes
  tar xzf kubernetes_*.orig.tar.gz -C kubernetes --strip-components=1
)

# Its reflect2 (1.0.1) crashes when a newer Go has compiled it; Debian's own (1.0.2) does not.
reflect2=$work/kubernetes/vendor/github.com/modern-go/reflect2
rm -f "$reflect2"/*.{go,s}
cp /usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$reflect2"

export GOPATH=$work/kubernetes/.go GOCACHE=$work/cache HOME=$work CGO_ENABLED=0 GO111MODULE=off GOPROXY=off
mkdir -p "$GOPATH/src/k8s.io"
ln -s ../../.. "$GOPATH/src/k8s.io/kubernetes"
make -C "$GOPATH/src/k8s.io/kubernetes" GOLDFLAGS="-s -w" KUBE_GIT_VERSION=v1.20.2 \
  WHAT="cmd/kube-apiserver cmd/kube-controller-manager cmd/kube-scheduler"

programs=$work/kubernetes/_output/local/go/bin
cp "$(command -v etcd)" "$folder/etcd"
for name in kube-apiserver kube-controller-manager kube-scheduler; do
  cp "$programs/$name" "$folder/$name.new"
  mv "$folder/$name.new" "$folder/$name"
done
