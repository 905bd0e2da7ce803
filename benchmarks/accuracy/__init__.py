"""Studies of accuracy against sparsity: variants of the shipped configs, trained, judged and compared.

python -m benchmarks.accuracy fit benchmarks/accuracy/vit.yaml "$CIFAR10" --jobs 2
python -m benchmarks.accuracy test benchmarks/accuracy/vit.yaml "$CIFAR10"
python -m benchmarks.accuracy table benchmarks/accuracy/vit.yaml
"""
