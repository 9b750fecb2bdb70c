# The image of every job: PostgreSQL's own programs, Debian's Python, and this package with its dependencies pinned by hash.
#
#   docker build -t clipper-backup:0.1.0 .
#   docker build -t clipper-backup:0.1.0 --build-arg PG_MAJOR=18 --build-arg EXTRA_APT_PACKAGES="postgresql-18-pgvector" .
#
# PG_MAJOR: the major version of your server, or a newer one; pg_dump refuses servers newer than itself.
# EXTRA_APT_PACKAGES: extensions that a restored copy of your database needs, from Debian's and PostgreSQL's own archives.
#
# Tags name major versions only, so that building anew brings their security fixes.
ARG PG_MAJOR=17

FROM postgres:${PG_MAJOR}-bookworm AS base
ARG EXTRA_APT_PACKAGES=""
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 ${EXTRA_APT_PACKAGES} \
 && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 clipper-backup \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin clipper-backup

FROM base AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements/build.txt requirements/runtime.txt requirements/
# runtime.txt holds the extras s3, gcs and azure too: `bucket check` is run where the store's identity is, in the pod. With bytecode
# they add 68 MB to 71 (alone: s3 36, gcs 22, azure 16): less than one image for each cloud would cost whoever builds, scans and
# ships them. Nothing but `bucket check` loads them.
# pip stays in `tools`, which is left behind; the environment that goes into the image has none.
RUN python3 -m venv tools \
 && tools/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r requirements/build.txt \
 && python3 -m venv --without-pip /opt/clipper-backup \
 && tools/bin/pip --python /opt/clipper-backup/bin/python install --no-cache-dir --no-compile --no-deps --require-hashes --only-binary :all: -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
# Bytecode is made here, since the root filesystem is read-only later, and is never compared with its source: some builders
# change the times of files, and every start would then compile everything anew.
RUN tools/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir wheels . \
 && tools/bin/pip --python /opt/clipper-backup/bin/python install --no-deps --no-index --no-compile wheels/*.whl \
 && /opt/clipper-backup/bin/python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /opt/clipper-backup/lib

FROM base
COPY --from=build /opt/clipper-backup /opt/clipper-backup
ENV PATH=/opt/clipper-backup/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
# The same numbers as in the manifests: `runAsNonRoot` cannot judge a name.
USER 10001:10001
# The base image asks for SIGINT, which means something only to its server.
STOPSIGNAL SIGTERM
HEALTHCHECK NONE
ENTRYPOINT ["clipper-backup"]
