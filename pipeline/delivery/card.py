"""The model card of a model folder, for people: what it is, how good, how to use it, where it comes from."""

from pipeline.delivery.record import ModelRecord


def model_card(record: ModelRecord, address: str) -> str:
    """Markdown."""
    score, network, origin = record.score, record.network, record.origin
    caveat = f", {score['caveat']}" if score["caveat"] else ""
    facts = [
        ("mIoU", f"{score['miou']:.4f}{caveat} ({score['split']} split, {score['num_images']} images, step {score['step']})"),
        ("network", f"CCNet, backbone {network['backbone']}, R = {network['recurrence']}"),
        ("classes", ", ".join(record.class_names)),
        ("input", "RGB images of any size; masks have the image's size, value = number of the class from 0"),
        ("data", f"{origin['data']}, fingerprint {origin['data_fingerprint'][:16]}"),
        ("started from", origin.get("start_weights") or "random weights"),
        ("run", f"{record.name}, MLflow run {origin['mlflow_run']}"),
    ]
    rows = "\n".join(f"| {name} | {text} |" for name, text in facts)
    classes = "\n".join(
        f"| {number} | {name} | {'absent' if iou is None else f'{iou:.4f}'} |"
        for number, (name, iou) in enumerate(zip(record.class_names, score["class_iou"], strict=True))
    )
    return f"""# {record.name}

| | |
| --- | --- |
{rows}

```python
import ccnet
model = ccnet.load({address!r})
mask = model.predict("image.jpg")  # uint8[H, W]
```

| number | class | IoU |
| --- | --- | --- |
{classes}

{record.licence}
"""
