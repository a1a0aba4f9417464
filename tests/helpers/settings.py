"""What a scenario without keys gives the method."""

from fl_peel.scenario.method import ControllerPart, Pretraining

PRETRAINING = Pretraining().config()
SPECTRAL = Pretraining(model="spectral").spectral()
CONTROLLER = ControllerPart().config()
