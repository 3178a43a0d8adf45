"""The evaluation side: labelled images and embedders -> metrics -> statistics -> verdict."""
