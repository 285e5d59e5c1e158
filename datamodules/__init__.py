"""LightningDataModules that stream clips: one short file per data set, built on `base`."""
