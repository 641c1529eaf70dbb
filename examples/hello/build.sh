# Pack the program into one file, and tell the pipeline where it is.
set -eu
archive="dist/greeting-$VERSION.pyz"
mkdir -p dist build
cp -r greeting build/
printf 'import greeting.__main__\n' > build/__main__.py
python3 -m zipapp build --output "$archive"
ls -l dist
echo "archive=$archive" >> "$CI_OUTPUT"
