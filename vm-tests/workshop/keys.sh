# ssh-keygen in the workspace: keys of two kinds, a signature, and its check.
ssh-keygen -q -t ed25519 -N '' -C work -f deploy-key
ssh-keygen -q -t rsa -b 2048 -N 'a pass phrase' -f rsa-key
ssh-keygen -l -f deploy-key.pub >fingerprint.txt
ssh-keygen -y -f deploy-key >again.pub
echo 'a message' >message.txt
ssh-keygen -q -Y sign -f deploy-key -n file message.txt
printf 'me ' >signers
cat deploy-key.pub >>signers
ssh-keygen -Y verify -f signers -I me -n file -s message.txt.sig <message.txt
ssh-keygen -q -p -P 'a pass phrase' -N '' -f rsa-key
