# tmux: a server, a session, a command in it, and its screen.
export LC_ALL=C.UTF-8
tmux new-session -d -s work -x 80 -y 24
tmux send-keys -t work 'echo typed >typed.txt; echo "screen of $((6 * 7))"' Enter
until tmux capture-pane -p -t work | grep 'screen of 42' >screen.txt; do tmux has-session -t work; done
tmux kill-server
