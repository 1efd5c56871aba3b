// This file lets the package declare functions that have their bodies elsewhere.
