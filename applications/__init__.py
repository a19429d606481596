"""Applications: tasks over model outputs. They receive output functions and never import an estimator."""
