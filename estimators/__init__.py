"""Estimators: each fits a datamodel, predicted outputs as a function of the training set. One estimator a file."""
