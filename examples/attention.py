"""Attention that knows the bonds and distances of a molecule, with torch alone.

    python examples/attention.py

Ethanol and water go through one layer together; then the operation inside it is called by itself.
"""

import torch

import collamo_kernels as ck

# Heavy atoms of ethanol, C-C-O, and of water, one numbering; both directions of each bond.
BONDS = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
PTR = torch.tensor([0, 3, 4])  # where each molecule starts, and the end
COORDINATES = torch.tensor(
    [[-0.93, 0.12, 0.0], [0.41, -0.55, 0.0], [1.43, 0.44, 0.0], [0.0, 0.0, 0.0]]
)
WIDTH, HEADS = 32, 4


def main() -> torch.Tensor:
    """Print what each molecule's atoms attend to; return the output of the layer."""
    torch.manual_seed(0)
    relations = ck.Relations.from_graphs(BONDS, PTR, COORDINATES)
    print("bonds between the atoms of ethanol:", relations.hops[0].tolist())

    layer = ck.CoAttention(WIDTH, HEADS)  # Φ2d and Φ3d are parameters of it
    atoms = torch.randn(2, 3, WIDTH)  # water is padded to three atoms
    y, attention = layer(atoms, relations, need_weights=True)
    print("what ethanol's oxygen attends to, by head:")
    print(attention[0, :, 2].detach())

    q = k = v = torch.randn(2, HEADS, 3, WIDTH // HEADS)
    out = ck.coattention(q, k, v, relations=relations, hop_bias=layer.hop_bias, radial=layer.radial)
    out.square().mean().backward()
    print("the gradient of Φ2d:", layer.hop_bias.grad[:, :3])
    return y


if __name__ == "__main__":
    main()
