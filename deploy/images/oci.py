"""Container images from files alone, as OCI image layouts: one layer, FROM scratch.

Equal input gives an equal digest: names are sorted, owners are root, every time is the one given, and gzip's header has
none. Formats: OCI image specification 1.1.
"""

import gzip
import hashlib
import io
import json
import os
import pathlib
import platform
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, field
from datetime import datetime, timezone

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
ARCHITECTURE = ARCHITECTURES.get(platform.machine(), platform.machine())

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

DIRECTORIES = {"/dev": 0o755, "/etc": 0o755, "/proc": 0o755, "/sys": 0o755, "/tmp": 0o1777, "/var": 0o755}
ACCOUNTS = {
    "/etc/passwd": "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"
    "nobody:x:65534:65534:nobody:/:/sbin/nologin\n",
    "/etc/group": "root:x:0:\nnonroot:x:65532:\nnogroup:x:65534:\n",
}


@dataclass
class Image:
    """What is in an image, and how it runs."""

    name: str  # with its tag
    files: dict[str, tuple[pathlib.Path, int]]  # path in the image: (source, mode)
    entrypoint: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    user: str = ""
    directory: str = "/"
    symlinks: dict[str, str] = field(default_factory=dict)  # link: target
    labels: dict[str, str] = field(default_factory=dict)
    architecture: str = ARCHITECTURE
    created: int = 0  # seconds since 1970

    def add_libraries(self):
        """Adds the shared libraries that the files need, and the loader, where ldd finds them."""
        for source, _ in list(self.files.values()):
            for library in shared_libraries(source):
                self.files.setdefault(library, (pathlib.Path(library), 0o755))


def shared_libraries(program):
    """The paths of a program's loader and libraries; none for a static one or what is no program."""
    ldd = subprocess.run(["ldd", program.absolute()], capture_output=True, text=True)
    if "not found" in ldd.stdout:
        raise SystemExit(f"{program}: missing shared libraries:\n{ldd.stdout}")
    return [word for line in ldd.stdout.splitlines() for word in line.split() if word.startswith("/")]


def write(image, output):
    """Writes an image as a layout folder, or as an archive of one if `output` ends in .tar. Returns the digest of its
    manifest."""
    if output.suffix != ".tar":
        return write_layout(image, output)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        layout = pathlib.Path(folder) / "layout"
        digest = write_layout(image, layout)
        archive(layout, output)
    return digest


def archive(layout, output):
    """Packs a layout folder as it is."""
    with tarfile.open(output, "w") as tar:
        for path in sorted(path for path in layout.rglob("*") if path.is_file()):
            with open(path, "rb") as content:
                add(tar, str(path.relative_to(layout)), 0o644, content=content, size=path.stat().st_size)


def write_layout(image, layout):
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer, diff_id = write_layer(image, blobs)
    config = write_json(blobs, CONFIG, configuration(image, diff_id))
    manifest = write_json(
        blobs,
        MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer],
            "annotations": image.labels,
        },
    )
    manifest["platform"] = {"architecture": image.architecture, "os": "linux"}
    # The first is what `ctr images import` calls it, the second what skopeo and oras do.
    manifest["annotations"] = {
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": image.name.rpartition(":")[2],
    }
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest]}
    (layout / "index.json").write_text(json.dumps(index, sort_keys=True))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return manifest["digest"]


def write_json(blobs, media_type, value):
    """Stores a JSON blob; returns its descriptor."""
    data = json.dumps(value, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def write_layer(image, blobs):
    """Stores the layer; returns its descriptor, and the digest of what is in it uncompressed."""
    packed = blobs / "layer"
    with tempfile.TemporaryFile(dir=blobs) as layer:
        write_files(image, layer)
        layer.seek(0)
        diff_id = hashlib.file_digest(layer, "sha256").hexdigest()
        layer.seek(0)
        with open(packed, "wb") as out, gzip.GzipFile("", "wb", 6, out, mtime=0) as compressed:
            while chunk := layer.read(1 << 20):
                compressed.write(chunk)
    with open(packed, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    size = packed.stat().st_size
    packed.rename(blobs / digest)
    return {"mediaType": LAYER, "digest": f"sha256:{digest}", "size": size}, f"sha256:{diff_id}"


def write_files(image, out):
    with tarfile.open(fileobj=out, mode="w") as tar:
        directories = dict(DIRECTORIES)
        for path in [*image.files, *image.symlinks]:
            for parent in pathlib.PurePosixPath(path).parents:
                directories.setdefault(str(parent), 0o755)
        directories.pop("/", None)
        for path in sorted(directories):
            add(tar, path, directories[path], time=image.created, type=tarfile.DIRTYPE)
        for path, text in ACCOUNTS.items():
            if path not in image.files:
                add(tar, path, 0o644, time=image.created, content=io.BytesIO(text.encode()), size=len(text))
        for path, (source, mode) in sorted(image.files.items()):
            with open(source, "rb") as content:
                size = os.fstat(content.fileno()).st_size
                add(tar, path, mode, time=image.created, content=content, size=size)
        for link, target in sorted(image.symlinks.items()):
            add(tar, link, 0o777, time=image.created, type=tarfile.SYMTYPE, linkname=target)


def add(tar, path, mode, time=0, content=None, **fields):
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.mode = mode
    entry.mtime = time
    for name, value in fields.items():
        setattr(entry, name, value)
    tar.addfile(entry, content)


def configuration(image, diff_id):
    """The image's configuration, as the OCI image specification defines it."""
    created = timestamp(image.created)
    return {
        "architecture": image.architecture,
        "os": "linux",
        "created": created,
        "config": {
            "Entrypoint": image.entrypoint,
            "Cmd": image.arguments,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *image.environment],
            "User": image.user,
            "WorkingDir": image.directory,
            "Labels": image.labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": "one layer of files, FROM scratch"}],
    }


def timestamp(seconds):
    """Seconds since 1970 as RFC 3339 has them."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
