"""nginx as a gateway: one worker process, no access log, connections to the engine kept. The floor on any machine."""

import os
import re
import shutil
import subprocess

from lib.bench.child import Child, free_port, listens
from lib.bench.target import Bench, Target
from lib.console import Problem

START_SECONDS = 10
CONFIGURATION = """\
{user}daemon off;
worker_processes 1;
worker_rlimit_nofile 8192;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_max_body_size 64m;
  client_body_buffer_size 1m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 100000000;
  upstream engine {{
    server {engine};
    keepalive 2048;
    keepalive_requests 100000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


def program() -> str:
    """Where nginx is. Raises Problem that says how to install it."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    found = shutil.which("nginx", path=path)
    if not found:
        raise Problem("nginx is not installed: apt-get install nginx-light (or leave it out: --targets hostler)")
    return found


def start(bench: Bench) -> Target:
    """A running nginx with a configuration of its own; the system's service is not touched."""
    nginx = program()
    said = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False, timeout=10)
    version = re.search(r"nginx/([\d.]+)", said.stderr + said.stdout)
    target = Target("nginx", f"nginx {version.group(1) if version else ''}: no key check, no parsing, no log")
    target.port = free_port()
    folder = bench.folder / "nginx"
    folder.mkdir()
    configuration = CONFIGURATION.format(
        folder=folder,
        port=target.port,
        engine=f"127.0.0.1:{bench.engine_port()}",
        user="user root;\n" if os.geteuid() == 0 else "",  # another could not enter the folder
    )
    (folder / "nginx.conf").write_text(configuration, encoding="ascii")
    command = [nginx, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    child = Child("nginx", command, core=bench.gateway_core, log=folder / "output", env=os.environ)
    target.children.append(child)
    child.wait_until(lambda: listens(target.port), START_SECONDS)
    return target
