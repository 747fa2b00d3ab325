# The commands of CONTRIBUTING.md. .ci/run calls the same recipes.

set shell := ["bash", "-euo", "pipefail", "-c"]

# List the recipes
[private]
default:
    @{{ just_executable() }} --list --unsorted

# Build every binary
build *ARGS:
    cargo build --workspace --bins --locked {{ ARGS }}

# Run the tests, or some of them, such as `just test -p quilt-protocol`
test *ARGS="--workspace":
    cargo test --locked {{ ARGS }}

# Check the format and run clippy, with warnings denied
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked --quiet -- -D warnings

# Build the API documentation, with warnings denied
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

# Check licences, banned crates and sources of the dependencies
deny:
    mkdir -p target
    cargo metadata --locked --format-version 1 --filter-platform "$(rustc --print host-tuple)" >target/metadata.json
    cargo deny --locked --metadata-path target/metadata.json check licenses bans sources

# Measure against the baselines, such as `just bench all --only hop`
bench *ARGS="all":
    cargo run --release --locked --quiet -p quilt-bench -- {{ ARGS }}

# Compare instruction counts with benches/instructions.txt; needs valgrind
counts:
    cargo run --release --locked --quiet -p quilt-bench -- micro --check benches/instructions.txt

# Build the fuzz targets, or run one for some seconds, such as `just fuzz session 600`
fuzz *ARGS="build":
    fuzz/run {{ ARGS }}

# Attack real daemons; `just attacks long` takes hours
attacks *ARGS:
    tests/attacks/run {{ ARGS }}

# Take resources away from real daemons, such as `just pressure --rounds 1000`
pressure *ARGS:
    tests/pressure/run {{ ARGS }}

# Run everything that decides whether a change is merged
ci:
    .ci/run
