# What must not go on: if these denials were not in the log, an empty list would show nothing.
! cat ~/.ssh/id_rsa
! touch ~/.bashrc
! sudo -n id
