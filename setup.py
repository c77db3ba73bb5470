"""Packaging: the library `paddle_dense`, the converter `convert` and the weights that ship with them."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent

extras = {
    # Paddle is an extra: a machine with paddlepaddle-gpu must not get a second Paddle.
    "cpu": ["paddlepaddle>=2.6"],
    "torch": ["torch>=2.0"],
    "report": ["jinja2>=3.0", "matplotlib>=3.5"],
    "deploy": ["paddle2onnx>=1.3", "onnx>=1.14", "onnxruntime>=1.16"],
    "train": ["scikit-learn>=1.0", "visualdl>=2.5", "pyyaml>=5.1"],
    "app": ["gradio>=6.31", "jinja2>=3.0"],
    "completion": ["shtab>=1.6"],
    "fuzz": ["atheris>=3"],
    "docs": [
        "mkdocs-material>=9.5",
        "mkdocs-static-i18n>=1.3",
        "mkdocs-autorefs>=1.4",
        "mkdocstrings[python]>=0.26",
        "jieba>=0.42",
        "matplotlib>=3.6",
        "scikit-learn>=1.0",
    ],
    "notebooks": ["notebook", "ipykernel>=6", "matplotlib>=3.5", "scikit-learn>=1.0"],
    "test": [
        "pytest>=7",
        "pytest-xdist>=3.5",
        "ruff",
        "mypy",
        "import-linter>=2",
        "jinja2>=3.0",
        "hypothesis",
        "pyyaml>=5.1",
        "safetensors>=0.4",
        "shtab>=1.6",
        "scikit-learn>=1.0",
        "matplotlib>=3.5",
        "nbmake>=1.5",
        "ipykernel>=6",
    ],
}

setup(
    name="paddle_dense",
    version="0.1.0",
    description="Densely connected networks in PaddlePaddle, and a converter of PyTorch checkpoints that proves itself",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=[*find_packages(include=["paddle_dense*", "convert*"]), "paddle_dense.shipped"],
    # The folder of weights becomes a part of the installed package.
    package_dir={"paddle_dense.shipped": "weights"},
    package_data={
        "paddle_dense": ["py.typed", "*.tsv"],
        "paddle_dense.commands": ["*.css"],
        "convert": ["py.typed"],
        "convert.report": ["*.j2", "*.css"],
        "paddle_dense.shipped": ["manifest.json", "*.pth", "*.pdparams", "*.json", "*.png"],
    },
    install_requires=["numpy>=1.24", "ppim", "pooch>=1.6", "lazy-loader>=0.3", "tqdm", "Pillow>=9.1"],
    extras_require=extras,
    entry_points={
        "console_scripts": [
            "torch2paddle = convert.console:torch2paddle",
            "paddle2torch = convert.console:paddle2torch",
            "paddle-dense = convert.console:paddle_dense",
        ]
    },
    classifiers=[
        "Natural Language :: Chinese (Simplified)",
        "Natural Language :: English",
        "Programming Language :: Python :: 3",
        "Typing :: Typed",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
