# The three commands with all their dependencies. CUDA is used if the host provides a device (torch contains it).
#
#   docker build -t rpp .
#   docker run --rm --network none rpp demo
#   docker run --rm --gpus all -v /data:/data -v "$PWD:/work" --user "$(id -u)" rpp run recipe.toml
#   docker run --rm --gpus all -v /data:/data --entrypoint rpp-cache rpp build --images '/data/*.tar' ...
FROM python:3.13-slim-trixie

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /opt/rpp

# The dependencies, about 6 GB, are a layer of their own: it is rebuilt only if pyproject.toml changes.
COPY pyproject.toml ./
RUN python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
        extras = project["optional-dependencies"]; \
        print(*project["dependencies"], *extras["s3"], *extras["tensorboard"], sep="\n")' > requirements.txt \
    && pip install --no-cache-dir --requirement requirements.txt

COPY README.md LICENSE THIRD_PARTY.md ./
COPY teacher_cache teacher_cache
COPY student_train student_train
COPY pipeline pipeline
RUN pip install --no-cache-dir --no-deps . \
    && useradd --uid 1000 --home-dir /work rpp \
    && install --directory --mode=1777 /work

# Nothing runs as root. Files are written and downloaded to /work, where any --user may write.
ENV HOME=/work
USER 1000
WORKDIR /work
ENTRYPOINT ["rpp"]
CMD ["demo"]
