"""Repair after truncation, block by block. Add an update with one file here and its YAML in conf/method/update/."""

from svdexp.update.base import Place, Repair, Update, place_all
from svdexp.update.ipca import IPCA
from svdexp.update.refit import RefitOutput

__all__ = ["IPCA", "Place", "RefitOutput", "Repair", "Update", "place_all"]
