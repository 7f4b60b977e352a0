# Callsheet in a small image that is not root.
#
#   docker build -t callsheet .
#   docker build -t callsheet --build-arg PACKAGES="python3 ffmpeg" .      with what your commands need from Debian
#
# Or build on it: FROM callsheet, USER root, RUN …, USER callsheet (docs/operations.md has an example with poetry).
# In a container a running command ends with the container, whatever on_stop says; docs/operations.md has the table.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# The dependencies first, with empty programs in place of ours: this layer is made anew only when they change.
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
COPY entity/Cargo.toml entity/
COPY migration/Cargo.toml migration/
RUN mkdir -p src/bin entity/src migration/src tests/it tests/bench \
 && touch src/lib.rs entity/src/lib.rs migration/src/lib.rs \
 && echo 'fn main() {}' >src/main.rs && cp src/main.rs src/bin/callsheet-shim.rs && cp src/main.rs tests/it/ && cp src/main.rs tests/bench/ \
 && cargo build --locked --profile dist --bins \
 && rm -r src entity/src migration/src tests
COPY entity entity
COPY migration migration
COPY src src
# Cargo goes by times, and the empty programs above are younger than ours.
RUN mkdir -p tests/it tests/bench \
 && touch tests/it/main.rs tests/bench/main.rs src/lib.rs src/main.rs src/bin/callsheet-shim.rs entity/src/lib.rs migration/src/lib.rs \
 && cargo build --locked --profile dist --bins

FROM debian:bookworm-slim
# What the user's own commands need, from Debian.
ARG PACKAGES=""
# tini: process 1, which passes signals on and reaps what commands leave behind when they end.
# hadolint ignore=DL3008,SC2086
RUN apt-get update -q \
 && apt-get install -yq --no-install-recommends ca-certificates tini tzdata $PACKAGES \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --system --gid 8440 callsheet \
 && useradd --system --uid 8440 --gid 8440 --home-dir /var/lib/callsheet --shell /usr/sbin/nologin callsheet \
 && install -d -o callsheet -g callsheet -m 0700 /var/lib/callsheet \
 && install -d -m 0755 /etc/callsheet
COPY --from=build /src/target/dist/callsheet /src/target/dist/callsheet-shim /usr/local/bin/
ENV CALLSHEET_CONFIG=/etc/callsheet/callsheet.toml
# The number of the user callsheet: what runs containers may want to see that it is not root.
USER 8440:8440
WORKDIR /var/lib/callsheet
VOLUME /var/lib/callsheet
EXPOSE 8440
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["callsheet", "check", "--ready"]
ENTRYPOINT ["/usr/bin/tini", "--", "callsheet"]
CMD ["serve", "--log-format", "json"]
