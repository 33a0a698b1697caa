from fmnist.seeds import derive


def test_seeds_differ_by_seed_purpose_and_number() -> None:
    seeds = {
        derive(seed, purpose, number)
        for seed in range(3)
        for purpose in ("sampler", "training")
        for number in range(50)
    }
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(1, "training", 2) == derive(1, "training", 2)
