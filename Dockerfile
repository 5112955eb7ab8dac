# One file, two images:
#
#   docker build --target server .     serves bundles; holds no torch
#   docker build --target trainer .    trains and exports them
#
# What changes least comes first: after an edit of the source only the last,
# small layers are made anew.

FROM python:3.11-slim-bookworm AS base
# A number of our own, so that volumes belong to the same user on every machine.
# Its home is /tmp: the one place that can be written where the rest is read-only.
RUN groupadd --gid 10001 latentserve \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home latentserve \
    && install -d -o 10001 -g 10001 /models /cache
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    LATENTSERVE_MODELS=/models
WORKDIR /app


FROM base AS server-packages
# No pip of its own: the image has no use for one.
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt LICENSE ./
# The version number; the rest of the source is not needed to install.
COPY latentserve/__init__.py latentserve/
# By the environment it holds for the build backend too, from pip 26.2 on by the second one.
ENV PIP_CONSTRAINT=/app/constraints.txt \
    PIP_BUILD_CONSTRAINT=/app/constraints.txt
# `serve,sign,cloud` for models in object storage.
ARG EXTRAS=serve,sign
# Editable: what is installed is the path /app, where the source is put last.
# The metadata want a README, but an edit of it is no reason to install anew.
RUN --mount=type=cache,target=/root/.cache/pip \
    touch README.md && pip --python /opt/venv/bin/python install --editable ".[$EXTRAS]"


FROM server-packages AS slim-packages
# Tests of the packages, and sources in C and stubs, which nothing imports: 20 MB.
RUN find /opt/venv/lib -depth \( -type d -name tests \
        -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' \) \
        -exec rm -r {} +


FROM server-packages AS trainer-packages
# The index that is named holds torch alone; its version is in constraints.txt, and
# what it depends on comes with the extra. The usual index has it with CUDA, which is
# several GB.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --no-deps --index-url "$TORCH_INDEX" torch
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --editable '.[export,sign]'


# What the images hold, for scanners: CycloneDX, made in stages that no image keeps.
FROM base AS sbom
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/sbom \
    && PIP_CONSTRAINT=/app/constraints.txt /opt/sbom/bin/pip install cyclonedx-bom


FROM sbom AS server-sbom
COPY --from=slim-packages /opt/venv /opt/venv
RUN /opt/sbom/bin/cyclonedx-py environment /opt/venv/bin/python \
    --output-reproducible --output-file /opt/latentserve.cdx.json


FROM sbom AS trainer-sbom
COPY --from=trainer-packages /opt/venv /opt/venv
RUN /opt/sbom/bin/cyclonedx-py environment /opt/venv/bin/python \
    --output-reproducible --output-file /opt/latentserve.cdx.json


FROM base AS trainer
LABEL org.opencontainers.image.title="latentserve trainer" \
      org.opencontainers.image.description="Trains variational autoencoders and exports them as bundles" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV LATENTSERVE_DATA_DIR=/data
# A new volume takes its owner from the folder it is mounted on.
RUN install -d -o 10001 -g 10001 /data /runs
COPY --link --from=trainer-packages /opt/venv /opt/venv
COPY --link --from=trainer-sbom /opt/latentserve.cdx.json /usr/share/sbom/
COPY --link LICENSE /app/
COPY --link bundle /app/bundle
COPY --link export /app/export
COPY --link latentserve /app/latentserve
COPY --link common /app/common
COPY --link service /app/service
COPY --link training /app/training
COPY --link deploy/train_once.py /app/deploy/
# As in the server's image: whichever is started first fills the new volume.
COPY --chown=10001:10001 models /models
# Here, since at run time nobody may write it.
RUN python -m compileall -q /app
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["latentserve"]
CMD ["train", "--help"]


FROM base AS server
LABEL org.opencontainers.image.title="latentserve server" \
      org.opencontainers.image.description="Serves variational autoencoders over gRPC and HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV LATENTSERVE_HOST=0.0.0.0 \
    LATENTSERVE_GRPC_PORT=50051 \
    LATENTSERVE_HTTP_PORT=8080 \
    LATENTSERVE_GATEWAY_PORT=8000 \
    # Who reaches it is decided by the ports that the container publishes.
    LATENTSERVE_GATEWAY_OPEN=true
COPY --link --from=slim-packages /opt/venv /opt/venv
COPY --link --from=server-sbom /opt/latentserve.cdx.json /usr/share/sbom/
COPY --link LICENSE /app/
COPY --link bundle /app/bundle
COPY --link latentserve /app/latentserve
COPY --link common /app/common
COPY --link service /app/service
COPY --chown=10001:10001 models /models
# Here, since at run time nobody may write it.
RUN python -m compileall -q /app
USER 10001:10001
EXPOSE 50051 8080 8000
# Every second until it is ready first, then now and then: a check starts a Python.
HEALTHCHECK --start-period=60s --start-interval=1s --interval=15s --timeout=6s --retries=3 \
    CMD ["latentserve", "check", "--timeout", "4"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["latentserve"]
CMD ["serve"]
