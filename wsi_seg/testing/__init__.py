"""Tools to prove that slides come out right whatever happens on the way; for tests of this package and of yours.

phantom   slides of any size whose every nucleus is known, and a model that reads them without a mistake
truth     what is wrong with the results of such a slide
broken    slides that are damaged in a chosen way
faults    reads and writes that fail, are late or end their process, in real processes
killer    SIGKILLs for the processes of a run
cluster   a Ray cluster of several nodes on this machine
soak      runs that are killed again and again, and what their results differ in from those of a quiet one
"""
