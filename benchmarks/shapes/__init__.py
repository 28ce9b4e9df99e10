"""The shapes world: small procedural scenes to train on and to score models with.

`world` has the scenes and their pictures, `text` the captions, questions and edits with their truth attached,
`scorer` reads a picture and says whether it is what was asked for, `data` writes training files, and
`python -m benchmarks.shapes score --model M` scores a model. `recipe` is how the bundled model `tiny` was made.
"""
