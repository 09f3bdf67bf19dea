"""Prose about nothing in particular: what an adapter must not make a model worse at.

Written for this; no adapter is trained on it.
"""

from typing import Final

__all__ = ["CONTROLS"]

CONTROLS: Final = (
    """The ferry left a little after seven, later than the timetable promised, and by the time \
it reached the open water most of the passengers had gone below to look for coffee. Two \
children stayed at the rail and counted the fishing boats. Their grandmother, who had \
made the crossing every summer for forty years, told them which of the islands still had \
schools and which had only sheep and a lighthouse that nobody kept any more.""",
    """To make the dough, stir the yeast into warm water and leave it until it foams. Add the \
flour a cup at a time, then the salt, and knead for about ten minutes, until the surface \
is smooth and springs back when pressed. Cover the bowl with a damp cloth. In a cool \
kitchen it may need two hours to double; in a warm one it can be ready in less than one.""",
    """A glacier moves because ice under pressure behaves like a very slow liquid. Near the \
bottom, where the weight is greatest, crystals slide past each other, and where the base \
is at its melting point a thin film of water lets the whole mass slip over the rock. The \
surface, which is brittle, cannot keep up, and so it cracks into crevasses wherever the \
bed below becomes steeper.""",
    """\"You said you would call the plumber on Monday," she said, without looking up from the \
newspaper. "I did call him," he answered. "He asked me what the noise was like, and I \
told him it was like someone knocking on a door in another house. He said he had never \
heard of a pipe that did that, and that he would come on Thursday if it was still \
knocking.\"""",
    """The committee met three times during the spring. It heard from teachers, from parents \
and from the drivers of the school buses, and it agreed in the end that the day should \
begin half an hour later. The cost was small, but the new timetable had to be arranged \
with the two neighbouring districts, which share the same vehicles, and that took until \
the following winter.""",
    """When a program asks the operating system for memory, it is usually given only a promise. \
Pages are set aside when they are first touched, and a process that reserves a gigabyte \
and writes to a tenth of it costs the machine little more than that tenth. The \
arrangement works well as long as not all of the promises are called in at once.""",
    """Dear Martin, thank you for the photographs. The house looks just as I remember it, \
although somebody has painted the shutters green, and I am glad that the pear tree is \
still there. We have had rain here for nine days. The river came up as far as the lower \
garden and took the bench with it, so that we now have a bench somewhere between here \
and the sea.""",
    """In the second half the visitors changed their plan. Instead of waiting they pressed the \
defenders close to the line, and the first goal came from a mistake that would not have \
happened an hour earlier. The home side had two good chances near the end, one of which \
struck the post, but the goalkeeper was hardly troubled, and the result was never really \
in doubt.""",
)
