# A deployment that only pretends: it runs what the build step has left in the workspace.
set -eu
for archive in dist/*.pyz; do
    echo "deploying $archive"
    for part in 1 2 3; do
        echo "  part $part of 3"
        sleep 0.3
    done
    python3 "$archive" production
done
