#!/bin/sh
# Print the images that COMPASS uses with the digests their registries serve now, as lines for
# docker/.env: `docker/pin.sh >> docker/.env`. A digest names one exact content; a tag may move.
set -eu
here=$(dirname "$0")
digest() { docker buildx imagetools inspect "$1" --format '{{.Manifest.Digest}}'; }
image() { # the default of variable $1, without its digest
    sed -n "s/.*$1[=:-]*\(docker.io[^@}]*\).*/\1/p" "$here/Dockerfile" "$here/compose.yaml" | head -n 1
}
for name in PYTHON_IMAGE POSTGRES_IMAGE MINIO_IMAGE; do
    tag=$(image "$name")
    printf 'COMPASS_%s=%s@%s\n' "$name" "$tag" "$(digest "$tag")"
done
