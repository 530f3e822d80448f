# A day with git: a branch, a merge, a remote in the workspace, a clone by path.
git init -q project
cd project
printf 'one\n' >notes.txt
git add notes.txt
git commit -q -m 'First'
git switch -q -c topic
printf 'two\n' >>notes.txt
git commit -q -a -m 'Second'
git switch -q main
printf 'build\n' >.gitignore
git add .gitignore
git commit -q -m 'Ignore'
git merge -q --no-edit topic
git tag -a -m 'A version' v1
git init -q --bare ../upstream.git
git remote add origin "$PWD/../upstream.git"
git push -q -u origin main topic v1
git clone -q ../upstream.git ../copy
cd ../copy
printf 'three\n' >>notes.txt
git stash -q
git stash pop -q
git commit -q -a -m 'Third'
git fetch -q
git rebase -q origin/main
git push -q origin main
git worktree add -q ../tree topic
git branch -q gone
git branch -q -d gone
git gc -q
git fsck --no-progress
git status --short
git log --oneline --graph --all
