# The steps of the README: install, then the demo or any command.
#   docker build -t rpp .
#   docker run --rm rpp                                    the demo
#   docker run --rm --gpus all -v /data:/data rpp rpp-cache build --images ...
FROM python:3.12-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /rpp
COPY . .
RUN make install
ENV PATH=/rpp/.venv/bin:$PATH
CMD ["rpp", "demo"]
