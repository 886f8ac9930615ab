#!/usr/bin/env bash
# Build the image without a container engine, and try it. Needs root, buildah and debootstrap (Debian: apt-get install buildah debootstrap).
#   containers/build.sh FOLDER [options of `buildah bud`]
# FOLDER (about 15 GB while it builds) holds the base, the images and the store; a base that is there is used again. Options go to the build,
# such as --build-arg TORCH_VERSION=2.13.0, or --volume /etc/pip.conf:/etc/pip.conf:ro where pip needs a mirror. The base named by FROM is made
# from Debian's packages and nothing is pulled, so the image has Debian's Python in place of Docker Hub's.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
mkdir -p "$1"
work="$(cd "$1" && pwd)"
shift
store=(--storage-driver vfs --root "$work/store" --runroot "$work/run")
base="$(sed -n 's/^FROM \([^ ]*\) AS runtime$/\1/p' "$here/containers/Dockerfile")"
version="$(sed -n 's/^ARG VERSION=//p' "$here/containers/Dockerfile")"

if ! buildah "${store[@]}" inspect --type image "docker.io/library/$base" > /dev/null 2>&1; then
    debootstrap --variant=minbase --include=python3,python3-venv,python-is-python3,ca-certificates bookworm "$work/base"
    container="$(buildah "${store[@]}" from scratch)"
    buildah "${store[@]}" copy --quiet "$container" "$work/base" /
    buildah "${store[@]}" config --env PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin "$container"
    buildah "${store[@]}" commit --quiet --rm "$container" "docker.io/library/$base"
    rm -rf "$work/base"
fi

buildah "${store[@]}" bud --isolation chroot --pull-never --tag "fmrisynth:$version" --file "$here/containers/Dockerfile" "$@" "$here"

# As a container runs on a cluster: read-only root, nobody's user, an empty /tmp, the image's variables and no others.
container="$(buildah "${store[@]}" from --pull-never "localhost/fmrisynth:$version")"
root="$(buildah "${store[@]}" mount "$container")"
trap 'buildah "${store[@]}" rm "$container" > /dev/null' EXIT
setting() { buildah "${store[@]}" inspect --format "$1" "$container" | sed '/^$/d'; }
mapfile -t variables < <(setting '{{range .OCIv1.Config.Env}}{{println .}}{{end}}')
entry="$(setting '{{range .OCIv1.Config.Entrypoint}}{{println .}}{{end}}')"
user="$(setting '{{.OCIv1.Config.User}}')"
inside() {
    # shellcheck disable=SC2016 # expanded inside
    unshare --mount bash -c '
        set -e
        root="$1" user="$2"; shift 2
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        mount -o remount,bind,ro "$root"
        exec chroot --userspec="$user" "$root" /usr/bin/env --chdir=/tmp --ignore-environment "$@"
    ' bash "$root" "$user" "${variables[@]}" "$@"
}
test "$(inside "$entry" --version | tail -n 1)" = "fmrisynth $version"
inside sh -c '! touch /opt/here 2> /dev/null'
inside fmrisynth-smoke
echo "Built fmrisynth:$version in $work/store ($(du -sh "$root" | cut -f 1)); its entry point and fmrisynth-smoke ran."
