"""Executes the notebook of the examples in a Jupyter kernel, and writes its outputs into it.

python -m tests.notebook
"""

import base64
import io
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "interrupt_and_continue.ipynb"
# Without what a kernel adds, such as the version of Python.
METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python"},
}


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook, folder, client=NotebookClient):
    """Executes a notebook in a kernel whose working directory is ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    resources = {"metadata": {"path": str(folder)}}
    client(notebook, timeout=300, resources=resources).execute(env=environment)
    return notebook


def printed(cell):
    """Returns the text that a cell has printed, which a kernel sends in parts."""
    outputs = cell.get("outputs", [])
    return "".join(each.text for each in outputs if each.get("name") == "stdout")


def pictures(cell):
    return [each.data["image/png"] for each in cell.get("outputs", []) if "data" in each]


def small(picture):
    """Returns a picture with 32 colors, which takes a quarter of the bytes."""
    file = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(32).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def main():
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(read(), folder)
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            text, images = printed(cell), pictures(cell)
            # What libraries write to stderr names files of this machine, and is left out.
            cell.outputs = [nbformat.v4.new_output("stream", text=text)] if text else []
            for image in images:
                data = {"image/png": small(image)}
                cell.outputs.append(nbformat.v4.new_output("display_data", data))
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
