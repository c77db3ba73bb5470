"""The networks as backbones of PaddleClas, PaddleDetection and PaddleSeg.

Importing an adapter registers every preset with its package, under the names and conventions that the package has for
its own backbones::

    import paddle_dense.adapters.paddleseg

The packages' scripts know nothing of that import. ``python -m paddle_dense.adapters`` makes it and then runs a script,
from the folder in which the script runs without it::

    python -m paddle_dense.adapters paddleclas tools/train.py -c cdnv2_a.yaml
    python -m paddle_dense.adapters paddledet tools/train.py -c retinanet_cdnv2_a.yml
    python -m paddle_dense.adapters paddleseg tools/train.py --config deeplabv3p_cdnv2_a.yml

The networks are in the condensed form unless `condensed: false` is given. It is the form to fine-tune: a network that
is to lose connections while it learns needs `paddle_dense.training`, since these packages do not tell it how far
training is.
"""
