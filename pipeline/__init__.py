"""The training pipeline: the only place that knows Ray, MLflow, object storage and OpenCV."""
