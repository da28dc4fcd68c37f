_base_ = '../mobilenet-v2.py'
# Of the same split: a teacher of another one has seen pictures of this one's test part.
teacher = dict(
    config='configs/transfer/dtd/resnet50.py',
    checkpoint=f'work_dirs/transfer/dtd/split{_base_.split}/resnet50/student.pth',
)
requires = [teacher]
