"""A trained model as one folder that anyone can load: `ccnet.load(FOLDER).predict("image.jpg")`.

Entry: `predictor.load` reads one, `deliver.deliver` writes one, `pyfunc.save` makes an MLflow model of one. Imports errors and
images; for other addresses than a local folder also config, storage and tracking, when one is loaded.
"""
