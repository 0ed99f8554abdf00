# Two images from one file:  docker build --target gateway .   and   docker build --target manager .
# BASE_IMAGE is any Debian-like image with Python 3.11 or newer, its venv module and pip. Compilers and the like that it
# holds stay: of python:3.13-slim nothing is left that builds or installs Python packages.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
# The same users and folders in both images: a fresh named volume takes over owner and mode of the folder it is
# mounted on, whichever of the two containers comes first. Group 10001 is where gateway, manager and engines meet.
RUN groupadd --gid 10001 hostler \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin hostler \
    && mkdir -p /data /models /run/hostler/manager /run/hostler/engines /var/cache/hostler /opt/hostler/app \
    && chown 10001:10001 /data /models /run/hostler /run/hostler/manager /run/hostler/engines /var/cache/hostler \
    && chmod 2770 /data /models /run/hostler/manager /run/hostler/engines /var/cache/hostler

# The virtual environments are made beside the final stages, so these hold neither pip's cache nor pip's working files.
FROM base AS build
RUN python3 -m venv --without-pip /opt/hostler/venv
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# Bytecode is made here once (unchecked-hash: never compared with the source's date): the root file system is read-only.
# faker comes with Litestar for its test helpers, is big, and is never imported.
ENV INSTALL="python3 -m pip --python /opt/hostler/venv/bin/python install -q --require-hashes --no-compile -r /tmp/requirements.txt"
ENV COMPILE="-m compileall -q -j 0 --invalidation-mode unchecked-hash -x /site-packages/faker/"

FROM build AS gateway-build
# the gateway's requirements, and those for people who sign in
COPY requirements/people.txt /tmp/requirements.txt
RUN $INSTALL && /opt/hostler/venv/bin/python $COMPILE /opt/hostler/venv
COPY gateway /opt/hostler/app/gateway
COPY worker_manager/__init__.py worker_manager/contract.py worker_manager/engine_flags.py /opt/hostler/app/worker_manager/
RUN /opt/hostler/venv/bin/python $COMPILE /opt/hostler/app

FROM build AS manager-build
COPY requirements/manager.txt /tmp/requirements.txt
RUN $INSTALL && /opt/hostler/venv/bin/python $COMPILE /opt/hostler/venv
COPY worker_manager /opt/hostler/app/worker_manager
RUN /opt/hostler/venv/bin/python $COMPILE /opt/hostler/app

FROM base AS final
# What installs Python packages goes, be it Debian's or the Python image's own; so do the bits that make a program run as
# its owner, though no-new-privileges makes them void. Both images share this layer.
RUN if command -v apt-get >/dev/null; then \
      installers=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' \
        | sed -nE 's/^ii +(python3-(pip|pip-whl|setuptools|setuptools-whl|pkg-resources|wheel|venv|packaging)|python3\.[0-9]+-venv)$/\1/p'); \
      [ -z "$installers" ] || DEBIAN_FRONTEND=noninteractive apt-get purge -y -qq $installers >/dev/null; \
    fi \
    && folders=$(python3 -c 'import sysconfig as s; print(s.get_path("purelib"), s.get_path("platlib"))') \
    && for folder in $folders; do rm -rf "$folder"/pip "$folder"/pip-* "$folder"/setuptools "$folder"/setuptools-* \
         "$folder"/pkg_resources "$folder"/_distutils_hack "$folder"/distutils-precedence.pth "$folder"/wheel "$folder"/wheel-*; done \
    && rm -rf /usr/local/bin/pip* /usr/local/bin/wheel "$(python3 -c 'import sysconfig as s; print(s.get_path("stdlib"))')/ensurepip" \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
ARG BASE_IMAGE
# gateway.__version__, as a test sees to
ARG VERSION=0.1.0
ARG REVISION=unknown
ENV PATH=/opt/hostler/venv/bin:$PATH PYTHONPATH=/opt/hostler/app
WORKDIR /opt/hostler/app
USER 10001:10001
STOPSIGNAL SIGTERM
# no label says where the source lies: who publishes images knows, and says so (docker build --label)
LABEL org.opencontainers.image.vendor="Hostler" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"

FROM final AS manager
COPY --from=manager-build /opt/hostler/venv /opt/hostler/venv
COPY --from=manager-build /opt/hostler/app /opt/hostler/app
LABEL org.opencontainers.image.title="hostler-manager" \
      org.opencontainers.image.description="Hostler's worker manager: starts, watches and stops engines through the Docker socket"
ENTRYPOINT ["python", "-m", "worker_manager"]

FROM final AS gateway
COPY --from=gateway-build /opt/hostler/venv /opt/hostler/venv
COPY --from=gateway-build /opt/hostler/app /opt/hostler/app
LABEL org.opencontainers.image.title="hostler-gateway" \
      org.opencontainers.image.description="Hostler's gateway: one OpenAI-compatible address in front of all engines"
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import http.client as h, os, ssl; a = ('127.0.0.1', 8000); c = h.HTTPSConnection(*a, timeout=4, context=ssl._create_unverified_context()) if os.environ.get('HOSTLER_TLS_CERTIFICATE') else h.HTTPConnection(*a, timeout=4); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status >= 300)"]
ENTRYPOINT ["python", "-m", "gateway"]
